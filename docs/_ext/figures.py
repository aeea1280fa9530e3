"""The panels that the site draws: every curve is computed by cdgrad when the site is built."""

import io
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import imports
import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

import cdgrad

CHANNELS = 64


class Look(NamedTuple):
    """Colors of a theme: text, faint lines, the page, and curves that color-blind readers tell apart."""

    ink: str
    faint: str
    paper: str
    curves: tuple[str, ...]


LOOKS = {  # in each, all colors differ
    "light": Look("#1d1d1f", "#d9dce1", "#ffffff", ("#1d1d1e", "#0072b2", "#c04f00", "#00825f", "#a8508a")),
    "dark": Look("#d5d8dd", "#3a3d42", "#131416", ("#eceef1", "#5cb8f0", "#f2a359", "#3fc79b", "#e3a3ca")),
}
PANELS: dict[str, Callable[[Any, Look], None]] = {}


def panel(draw: Callable[[Any, Look], None]) -> Callable[[Any, Look], None]:
    PANELS[draw.__name__.replace("_", "-")] = draw
    return draw


def svg(name: str, theme: str) -> bytes:
    """A panel, sized so that two stand side by side; the same bytes every time."""
    drawn, light, look = _drawn(name), LOOKS["light"], LOOKS[theme]
    for old, new in zip((*light[:3], *light.curves), (*look[:3], *look.curves), strict=True):
        drawn = drawn.replace(old.encode(), new.encode())
    return drawn


@lru_cache  # each panel is shown in two themes, and drawing takes most of a build
def _drawn(name: str) -> bytes:
    """A panel on a light page."""
    look = LOOKS["light"]
    style = {
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "svg.hashsalt": name,
        "text.color": look.ink,
        "axes.labelcolor": look.ink,
        "axes.edgecolor": look.ink,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": look.faint,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "legend.fontsize": 7.8,
        "legend.handlelength": 1.6,
        "legend.borderaxespad": 0.2,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.75, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        PANELS[name](figure.subplots(), look)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def directed(columns: np.ndarray, metric: cdgrad.Metric | str) -> np.ndarray:
    return cdgrad.channel_directed(torch.from_numpy(columns), metric).numpy()


def centers(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


@panel
def spectra(axes: Any, look: Look) -> None:
    """Factors on the modes, one metric a curve."""
    texts = ("l2", "reweighted:lam=3", "sobolev:lam=0.01", "mean-sobolev:lam=0.05")
    for text, color, dash in zip(texts, look.curves, (":", "-.", "-", "--"), strict=False):
        factors = cdgrad.parse_metric(text).spectrum(CHANNELS)
        axes.plot(np.arange(1, CHANNELS), factors[1:], dash, color=color, label=text)
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 30), title=f"each metric, {CHANNELS} channels, free")
    axes.set(xlabel="mode k along the channel", ylabel="factor")
    axes.legend(loc="lower left")
    _plain_log(axes)


@panel
def spectra_lam(axes: Any, look: Look) -> None:
    """Factors of the Sobolev metric as lam grows."""
    for lam, color, dash in zip((1e-4, 1e-3, 1e-2, 1e-1), look.curves, ("-", "--", "-.", ":"), strict=False):
        factors = cdgrad.Sobolev(lam).spectrum(CHANNELS)
        axes.plot(np.arange(1, CHANNELS), factors[1:], dash, color=color, label=f"lam = {lam:g}")
    axes.set(xscale="log", yscale="log", ylim=(1e-4, 30), title="Sobolev, free")
    axes.set(xlabel="mode k along the channel", ylabel="factor")
    axes.legend(loc="lower left")
    _plain_log(axes)


@panel
def kernel_sobolev(axes: Any, look: Look) -> None:
    """What becomes of a gradient at one channel, in the Sobolev metric."""
    _impulses(axes, look, cdgrad.Sobolev, 0.01)


@panel
def kernel_mean_sobolev(axes: Any, look: Look) -> None:
    """The same in the mean-weighted metric."""
    _impulses(axes, look, cdgrad.MeanSobolev, 0.05)


def _impulses(axes: Any, look: Look, family: Any, lam: float) -> None:
    """Responses to unit mass at a channel in the middle and at one near the end, free and periodic."""
    s = centers(CHANNELS)
    for channel, color in ((31, look.curves[1]), (2, look.curves[2])):
        impulse = np.zeros(CHANNELS)
        impulse[channel] = CHANNELS
        for boundary, dash in (("free", "-"), ("periodic", "--")):
            label = f"{boundary}, at channel {channel + 1}"
            axes.plot(s, directed(impulse, family(lam, boundary)), dash, color=color, label=label)
    axes.axhline(0, color=look.ink, linewidth=0.6)
    low, high = axes.get_ylim()
    axes.set(title=str(family(lam)), xlabel="output channel s", ylabel="response", ylim=(low, high * 1.35))
    axes.legend(loc="upper right")


@panel
def profile_reweighted(axes: Any, look: Look) -> None:
    """A made-up noisy column, and its re-weighted gradient."""
    _profile(axes, look, "reweighted:lam=3")


@panel
def profile_sobolev(axes: Any, look: Look) -> None:
    """The same column in the Sobolev metric."""
    _profile(axes, look, "sobolev:lam=0.003")


def _profile(axes: Any, look: Look, metric: str) -> None:
    s = centers(CHANNELS)
    signal = 0.5 + np.sin(2.6 * np.pi * s) * np.exp(-s)
    noisy = signal + 0.5 * np.random.default_rng(3).standard_normal(CHANNELS)
    axes.plot(s, noisy, ".", color=look.ink, markersize=3.5, alpha=0.55, label="ordinary gradient")
    axes.plot(s, signal, ":", color=look.curves[3], label="without its noise")
    axes.plot(s, directed(noisy, metric), color=look.curves[1], label=metric)
    axes.axhline(noisy.mean(), color=look.ink, linewidth=0.6, linestyle=(0, (1, 2)))
    low, high = axes.get_ylim()
    axes.set(
        title=metric, xlabel="output channel s", ylabel="gradient", ylim=(low, high + 0.45 * (high - low))
    )
    axes.legend(loc="upper right")


@panel
def convergence(axes: Any, look: Look) -> None:
    """Distance of the discrete periodic kernels to Green's functions of the continuum."""
    counts = 2 ** np.arange(3, 11)
    cases = (
        (cdgrad.Sobolev(0.01, "periodic"), sobolev_kernel),
        (cdgrad.MeanSobolev(0.05, "periodic"), mean_kernel),
    )
    for (metric, kernel), color, marker in zip(cases, look.curves[1:], "os", strict=False):
        errors = []
        for n in counts:
            impulse = np.zeros(n)
            impulse[0] = n
            errors.append(np.abs(directed(impulse, metric) - kernel(np.arange(n) / n, metric.lam)).max())
        axes.plot(counts, errors, marker=marker, markersize=4, color=color, label=str(metric))
    axes.plot(counts, 3 * counts**-2.0, ":", color=look.ink, label="slope -2")
    axes.set(xscale="log", yscale="log", title="distance to the continuum", xlabel="channels n")
    axes.set(ylabel="largest difference to K(s)")
    axes.set_xticks(counts[::2], [str(n) for n in counts[::2]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(1e-6, 30)
    axes.legend(loc="upper right")


def sobolev_kernel(s: np.ndarray, lam: float) -> np.ndarray:
    root = np.sqrt(lam)
    return np.cosh((np.abs(s) - 0.5) / root) / (2 * root * np.sinh(0.5 / root))


def mean_kernel(s: np.ndarray, lam: float) -> np.ndarray:
    return 1 + (s**2 / 2 - np.abs(s) / 2 + 1 / 12) / lam


@panel
def norm(axes: Any, look: Look) -> None:
    """Root mean square of the factors: how long a gradient of white noise is afterwards."""
    lams = np.geomspace(1e-5, 10, 61)
    for family, color, dash in (
        (cdgrad.ReweightedL2, look.curves[2], "-."),
        (cdgrad.Sobolev, look.curves[1], "-"),
        (cdgrad.MeanSobolev, look.curves[3], "--"),
    ):
        ratios = [np.sqrt(np.mean(family(lam).spectrum(CHANNELS) ** 2)) for lam in lams]
        axes.plot(lams, ratios, dash, color=color, label=family.family)
    axes.axhline(1, color=look.ink, linewidth=0.6)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(0.08, 300),
        title=f"norm of white noise, {CHANNELS} channels",
    )
    axes.set(xlabel="lam", ylabel="|directed| / |ordinary|")
    axes.legend(loc="upper right")
    axes.xaxis.set_major_locator(LogLocator(base=100, numticks=9))


def _record(name: str) -> dict[str, Any]:
    file = Path(__file__).parents[2] / "benchmarks" / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


_SHAPES = {"reweighted": "s", "sobolev": "o", "mean-sobolev": "^"}


def _free(metrics: Iterable[str]) -> dict[str, str]:
    """The metric of each family, with free boundaries."""
    names = [metric for metric in metrics if "periodic" not in metric]
    return {family: next(m for m in names if m.startswith(f"{family}:")) for family in _SHAPES}


def _ratios(axes: Any, look: Look, rows: dict[str, dict[str, float]]) -> None:
    """Cold time over the floor by family: a row a network."""
    for y, ratios in enumerate(rows.values()):
        for (family, shape), color in zip(_SHAPES.items(), look.curves[1:], strict=False):
            label = family if y == 0 else None
            axes.plot(ratios[family], y, shape, color=color, markersize=5.5, label=label, linestyle="")
    axes.plot([1, 1], [-0.6, len(rows)], color=look.ink, linewidth=0.8)  # ends below the legend
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlim=(0, 3), ylim=(len(rows) - 0.5, -1.6 * len(rows) / 4), title="cold time over the floor")
    axes.set(xlabel="times the floor (1: read and write once)")
    axes.legend(
        loc="upper right", ncols=3, columnspacing=0.6, handletextpad=0.1, handlelength=1.0, fontsize=7.2
    )


def _shares(axes: Any, look: Look, shares: dict[str, float], most: float) -> None:
    """Percent of a training step: a bar a family."""
    for y, (share, color) in enumerate(zip(shares.values(), look.curves[1:], strict=False)):
        axes.barh(y, share, color=color, height=0.55)
        axes.annotate(f" {share:.2f} %", (share, y), va="center", fontsize=8)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set(xlim=(0, most), ylim=(len(shares) - 0.4, -0.6), title="share of a training step")
    axes.set(xlabel="percent of a step of ResNet-18")


@panel
def cost_floor(axes: Any, look: Look) -> None:
    """On the CPU, cold time over the floor."""
    rows: dict[str, dict[str, float]] = {}
    for name, network in _record("cost")["networks"].items():
        if not name.startswith("wide"):
            times = {row["name"]: row["cold_over_floor"] for row in network["rows"]}
            free = _free(network["chosen"]).items()
            rows[name] = {family: times[f"{m} | {network['chosen'][m]}"] for family, m in free}
    _ratios(axes, look, {name.replace("-imagenet", ""): row for name, row in rows.items()})


@panel
def cost_step(axes: Any, look: Look) -> None:
    """On the CPU, the operator in percent of a training step."""
    steps = {row["name"].split(" ")[0]: row for row in _record("cost")["steps"] if row["operator_over_step"]}
    _shares(axes, look, {f: 100 * steps[m]["operator_over_step"] for f, m in _free(steps).items()}, 0.27)


@panel
def gpu_floor(axes: Any, look: Look) -> None:
    """On a GPU, cold time over the floor."""
    rows: dict[str, dict[str, float]] = {}
    for name, row in _record("gpu")["sections"]["floor"]["rows"].items():
        if not name.startswith("wide") and "plain" not in name and "channels-last" not in name:
            free = _free(row["times"]).items()
            label = name.replace("resnet18-imagenet", "resnet18").replace("float", "fp").replace("bfp", "bf")
            rows[label] = {family: row["times"][m]["over_floor"] for family, m in free}
    _ratios(axes, look, rows)


@panel
def gpu_step(axes: Any, look: Look) -> None:
    """On a GPU, how much longer a training step as one CUDA graph takes, in percent."""
    steps = _record("gpu")["sections"]["training steps"]["rows"]["graph"]
    _shares(axes, look, {f: steps[m]["longer_percent"] for f, m in _free(steps).items()}, 2.5)
    axes.set(title="a training step takes longer by")


def _plain_log(axes: Any) -> None:
    axes.set_xticks([1, 2, 4, 8, 16, 32, 63], ["1", "2", "4", "8", "16", "32", "63"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


@panel
def imports_core(axes: Any, look: Look) -> None:
    """Imports within the method."""
    _layers(axes, look, imports.core(), "cdgrad: the method")


@panel
def imports_study(axes: Any, look: Look) -> None:
    """Imports within the study tool."""
    _layers(axes, look, imports.study(), "cdgrad.study and the commands")


_LETTERS = 60.0  # that fit beside each other into a panel


def _width(name: str) -> float:
    """Of a box with its name, in letters."""
    return len(name) + 3.0


def _fitting(layer: list[str]) -> list[list[str]]:
    """A layer as one row, or as two where its boxes would overlap."""
    if sum(map(_width, layer)) < _LETTERS:
        return [layer]
    half = len(layer) // 2
    return [layer[:half], layer[half:]]


def _layers(axes: Any, look: Look, graph: imports.Graph, title: str) -> None:
    """Boxes by layer, lowest at the bottom; an arrow from a module to what it imports."""
    place: dict[str, tuple[float, float]] = {}
    rows = [part for layer in imports.layers(graph) for part in _fitting(layer)]
    for y, row in enumerate(rows):
        gap = (_LETTERS - sum(map(_width, row))) / (len(row) + 1)
        left = gap * (0.7 if y % 2 else 1.3)  # boxes of neighboring rows are not one above the other
        for name in row:
            place[name] = ((left + _width(name) / 2) / _LETTERS, float(y))
            left += _width(name) + gap
    arrow = {
        "arrowstyle": "-|>",
        "color": look.ink,
        "alpha": 0.45,
        "linewidth": 0.9,
        "shrinkA": 7,
        "shrinkB": 7,
    }
    for name, targets in imports.needed(graph).items():
        for target in targets:
            axes.annotate("", place[target], place[name], arrowprops=arrow, zorder=1)
    box = {"boxstyle": "round,pad=0.25", "linewidth": 1.0, "edgecolor": look.curves[1]}
    box["facecolor"] = look.paper
    for name, (x, y) in place.items():
        axes.text(x, y, name, ha="center", va="center", fontsize=7.6, bbox=box, zorder=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.5, len(rows) - 0.5), title=title)
    axes.axis("off")
