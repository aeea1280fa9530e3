"""The parts of the page: each study's tables, figures and the sentences whose numbers come from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from cdgrad.study.report.figures.drawing import Drawing
from cdgrad.study.report.words import enumerated
from cdgrad.study.statistics import paired as stats
from cdgrad.study.statistics.results import Results
from evidence.build import (
    again,
    claims,
    earlier,
    elsewhere,
    figures,
    gpu,
    labels,
    ledger,
    mechanism,
    ranges,
    searches,
    tables,
    width,
)
from evidence.build.loading import PHOTOS, RATES, Row, baselines, rows, studies

CONTROLS = {
    "rw-output": "re-weighted, output channel",
    "rw-input": "re-weighted, input channel",
    "sobolev-output": "Sobolev, output channel",
    "sobolev-permuted": "Sobolev, output channel, random order",
    "sobolev-input": "Sobolev, input channel",
    "sobolev-height": "Sobolev, height",
    "sobolev-width": "Sobolev, width",
    "centralize": "gradient centralization",
}
ATTEMPTS = {
    "wiener": "mean and deviation weighted by measured signal and noise, layer by layer",
    "annealed-rw": "re-weighted, falling to the ordinary gradient by mid-training",
    "annealed-sob": "Sobolev, falling to the ordinary gradient by mid-training",
    "sorted": "Sobolev along an order of similar channels, renewed every epoch",
    "smooth-start": "Sobolev, from initial weights smoothed along the channel",
    "update-rw": "re-weighted, on the update instead of the gradient",
    "update-sobolev": "Sobolev, on the update instead of the gradient",
}
ORDERS = {
    "own order": ("none", "index"),
    "similar neighbors": ("none", "similar"),
    "own order, trained by Sobolev": ("sobolev", "index"),
}
OPTIMIZERS = {"best-effort-sgd": "SGD with momentum", "best-effort-adamw": "AdamW"}
PHOTOGRAPHS = {
    ("cifar10-jpeg", ""): "CIFAR-10, ResNet-8, SGD",
    ("cifar10-momentum", "resnet8-batch256"): "CIFAR-10, ResNet-8, SGD, batch 256",
    ("cifar10-momentum", "plain-momentum"): "CIFAR-10, plain, SGD",
    ("cifar10-adamw", "resnet8-adamw"): "CIFAR-10, ResNet-8, AdamW",
    ("cifar10-adamw", "plain-adamw"): "CIFAR-10, plain, AdamW",
    ("tiny-imagenet-50", ""): "Tiny ImageNet, ResNet-8, SGD",
}
CELLS = {
    "small-cnn-digits": "small CNN, digits",
    "resnet8-digits": "ResNet-8, digits",
    "resnet8-cifar10-jpeg": "ResNet-8, CIFAR-10 (JPEG)",
}


def all_parts() -> tuple[dict[str, str], list[Drawing]]:
    """Everything that the two pages ask for, by name, and the figures."""
    parts: dict[str, str] = {}
    drawn: list[Drawing] = []
    for section in (claims.section, axes, rates, mechanisms, width.section):
        more, figures_of_it = section()
        parts |= more
        drawn += figures_of_it
    without_figures = (ranges.section, photographs, elsewhere.section, attempts, ledger.section)
    for words in (
        *without_figures,
        searches.section,
        labels.section,
        gpu.section,
        again.section,
        earlier.section,
    ):
        parts |= words()
    return parts, drawn


def axes() -> tuple[dict[str, str], list[Drawing]]:
    """The metric along other axes, in a random order of the channels; centralization beside them."""
    (study,) = studies(["controls"])
    table = rows([study], CONTROLS)
    cell = next(iter(study.spec.cells))
    between = {
        other: stats.compare(study.errors(cell, "sobolev-output"), study.errors(cell, f"sobolev-{other}"))
        for other in ("permuted", "input")
    }
    parts = {
        "axes_seeds": str(len(study.spec.seeds)),
        "axes_rate": f"{study.values(cell, 'none')['optimizer.lr']:.2g}",
        "axes_base": _base(study),
        **{
            f"axes_{other}": f"{tables.difference(c)}, p = {tables.probability(c.p)}"
            for other, c in between.items()
        },
        "axes_table": tables.listing(table, CONTROLS),
    }
    return parts, figures.one_forest("axes", table, CONTROLS)


def rates() -> tuple[dict[str, str], list[Drawing]]:
    """The baseline of the small CNN over its learning rates, whichever study ran it."""
    (study,) = studies(["controls"])
    cell = next(iter(study.spec.cells))
    errors = {
        float(arm.removeprefix("lr-")): study.errors(cell, arm) for arm in study.spec.arms if "lr-" in arm
    }
    errors |= {
        setting.tables()[3].lr: other.errors(of_rate, "none")
        for other in studies(RATES)
        for of_rate in other.spec.cells
        if of_rate.startswith(cell) and (setting := other.spec.setting(of_rate, "none"))
    }
    tuned = study.values(cell, "none")["optimizer.lr"]
    errors[tuned] = study.errors(cell, "none")
    means = {rate: float(np.mean(values)) for rate, values in errors.items()}
    least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    parts = {
        "rates_least": f"{means[least]:.2f} % at {least:.2g}",
        "rates_most": f"{means[most]:.2f} % at {most:.2g}",
        "rates_tuned": f"{tuned:.2g}",
    }
    return parts, figures.rates("rates", dict(sorted(errors.items())), tuned)


def photographs() -> dict[str, str]:
    """Subsets of CIFAR-10 (JPEG) and Tiny ImageNet."""
    results = studies(PHOTOS)
    all_photographs = [*results, *studies(["regimes-cifar10"])]
    table = [replace(row, cell=PHOTOGRAPHS[row.study, row.cell]) for row in rows(results)]
    base = {
        PHOTOGRAPHS[study.spec.name, cell]: error_and_sd
        for study in results
        for cell, error_and_sd in baselines([study]).items()
    }
    named = {"-".join(filter(None, key)): name for key, name in PHOTOGRAPHS.items()}
    controls = claims.at_equal_rates(
        [replace(row, cell="-".join(filter(None, (row.study, row.cell)))) for row in rows(results)]
    )
    better = [f"{row.cell} ({claims.METHODS[row.arm]})" for row in table if row.better]
    worse = [f"{row.cell} ({claims.METHODS[row.arm]})" for row in table if row.worse]
    return {
        "photos_about": "\n".join(f"- {_description(study)}" for study in results),
        "photos_jpeg": _variety([study for study in results if study.spec.name != "tiny-imagenet-50"]),
        "photos_count": str(len(table)),
        "photos_seeds": _range(len(study.spec.seeds) for study in all_photographs),
        "photos_trial_seeds": _range(
            len(study.spec.tuning.seeds) for study in all_photographs if study.spec.tuning
        ),
        "photos_trials": " or ".join(sorted({str(s.spec.tuning.trials) for s in results if s.spec.tuning})),
        "photos_better": "; ".join(better) or "none",
        "photos_worse": "; ".join(worse) or "none",
        "photos_better_count": str(len(better)),
        "photos_worse_count": str(len(worse)),
        "photos_rates": claims.rates_table(
            control._replace(row=replace(control.row, cell=named[control.row.cell])) for control in controls
        ),
        "photos_rates_shown": str(sum(control.against.differs for control in controls)),
        "photos_rates_better": str(sum(control.against.better for control in controls)),
        "photos_rates_count": str(len(controls)),
        "photos_table": tables.matrix(table, base, {arm: claims.METHODS[arm] for arm in claims.STRENGTHS}),
        "photos_searched": _searched_longer(),
    }


def _searched_longer() -> str:
    """One combination again, with more seeds in every trial; empty without the record."""
    words = ""
    for study in studies(["cifar10-tuned"]):
        assert study.spec.tuning is not None
        words = (
            f"Is that the search? CIFAR-10, plain, SGD once more, with {study.spec.tuning.trials} trials of "
            f"{len(study.spec.tuning.seeds)} seeds an arm and {len(study.spec.seeds)} new\nfinal seeds; "
            f"the baseline's error is {_base(study)}:\n\n" + tables.listing(rows([study]), claims.METHODS)
        )
    return words


def _range(counts: Iterable[int]) -> str:
    """The smallest and the largest."""
    distinct = sorted(set(counts))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def _variety(results: Sequence[Results]) -> str:
    """How many networks, optimizers and batch sizes the studies compare, in a sentence."""
    settings = [
        study.spec.setting(cell, study.spec.baseline) for study in results for cell in study.spec.cells
    ]
    tables_of = [setting.tables() for setting in settings]
    counts = {
        "network": len({model.name for _, model, *_ in tables_of}),
        "optimizer": len({optimizer.name for *_, optimizer in tables_of}),
        "batch size": len({schedule.batch for _, _, schedule, _ in tables_of}),
    }
    words = [f"{count} {noun}{'s' if count > 1 else ''}" for noun, count in counts.items()]
    return f"The records hold {enumerated(words)}."


def _description(study: Results) -> str:
    """What a study of photographs was made of."""
    spec, budget = study.spec, study.spec.tuning
    task, _, schedule, _ = spec.setting(next(iter(spec.cells)), spec.baseline).tables()
    trials = f"{budget.trials} trials an arm, of {len(budget.seeds)} seed" if budget else "no trials"
    return (
        f"{spec.title}: tested on {task.test:,}, {schedule.epochs} epochs, {len(spec.seeds)} seeds, {trials}."
    )


def mechanisms() -> tuple[dict[str, str], list[Drawing]]:
    """Signal over noise by mode, roughness along training."""
    modes, layers = mechanism.table("modes"), mechanism.table("layers")
    cells = {cell: name for cell, name in CELLS.items() if cell in set(modes["cell"])}
    curves: dict[str, dict[str, mechanism.Curve]] = {name: {} for name in cells.values()}
    lines: list[list[str]] = []
    for cell, name in cells.items():
        seeds = str(len(np.unique(modes["seed"][modes["cell"] == cell])))
        for label, (arm, order) in ORDERS.items():
            chosen = {"cell": cell, "arm": arm, "order": order, "source": "fresh"}
            curve = curves[name][label] = mechanism.curve(modes, **chosen)
            value, ends = mechanism.contrast(modes, **chosen)
            mean = f"{curve.ratio[0]:.2f}\u00a0±\u00a0{(curve.interval[1, 0] - curve.interval[0, 0]) / 2:.2f}"
            lines.append([name, label, seeds, tables.plus_minus(value, ends), mean])
    head = ["network and data", "channels in", "seeds", "low minus high modes", "mean mode"]
    arms = {"none": "baseline", "sobolev": "Sobolev, lam = 0.01", "reweighted": "re-weighted, lam = 3"}
    parts = {
        "mechanism_table": tables.markdown(head, lines, right=2),
        "training_table": _training_table(layers, cells, arms),
    }
    drawn = [*figures.spectra("spectra", curves), *figures.training("training", layers, cells, arms)]
    return parts, drawn


def _training_table(layers: dict[str, mechanism.Array], cells: dict[str, str], arms: dict[str, str]) -> str:
    """What the weights are like when training begins and ends."""
    layers = layers | {"share": layers["weight_mean_share"] * layers["channels"]}
    lines: list[list[str]] = []
    for cell, name in cells.items():
        for arm, label in arms.items():
            if arm in layers["arm"][layers["cell"] == cell]:
                chosen = {"cell": cell, "arm": arm, "order": "index"}
                shown = [
                    mechanism.along_training(layers, key, **chosen) for key in ("weight_roughness", "share")
                ]
                lines.append([name, label, *(f"{mean[at]:.2f}" for _, mean, _ in shown for at in (0, -1))])
    head = ["network and data", "trained by", "roughness at first", "at last"]
    head += ["mean mode's share times n at first", "at last"]
    return tables.markdown(head, lines, right=2)


def attempts() -> dict[str, str]:
    """What was tried beyond the paper's idea."""
    results = studies(["best-effort-sgd", "best-effort-adamw"])
    table = rows(results)
    better = [_attempt(row) for row in table if row.better]
    worse = [_attempt(row) for row in table if row.worse]
    controls = claims.at_equal_rates(table)
    lines = [
        [
            ATTEMPTS[control.row.arm],
            f"{np.mean(control.errors):.2f}",
            tables.difference(control.against.comparison, control.against.differs),
        ]
        for control in controls
    ]
    listed = [
        f"{OPTIMIZERS[study.spec.name]}; baseline error {_base(study)}:\n\n"
        + tables.listing([row for row in table if row.cell in study.spec.cells], ATTEMPTS)
        for study in results
    ]
    budgets = sorted({study.spec.tuning.trials for study in results if study.spec.tuning})
    return {
        "attempts_seeds": " or ".join(sorted({str(len(study.spec.seeds)) for study in results})),
        "attempts_trials": " or ".join(map(str, budgets)),
        "attempts_better": "; ".join(better) or "none",
        "attempts_worse": "; ".join(worse) or "none",
        "attempts_rates": tables.markdown(
            ["arm", "baseline at the arm's rate, %", "difference, points"], lines, right=1
        ),
        "attempts_rates_count": str(len(controls)),
        "attempts_rates_shown": str(sum(control.against.differs for control in controls)),
        "attempts_tables": "\n\n".join(listed),
    }


def _attempt(row: Row) -> str:
    return f"{ATTEMPTS[row.arm]} ({tables.cell_name(row.cell)})"


def _base(study: Results) -> str:
    """Error and SD of the baseline of a study with one cell."""
    ((error, sd),) = baselines([study]).values()
    return f"{error:.2f} % (SD {sd:.2f})"
