"""Every optimizer at hand, built as its documentation says, and what becomes of attaching to it.

`outcome` decides: an attached run equals, bit for bit, a run whose gradients are directed by hand, and
differs from an ordinary one; or `attach` refuses. Nothing else is an outcome. Run as a program, it writes
benchmarks/results/optimizers.json, from which ``make pages`` writes the table of docs/optimizers.md.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytorch_optimizer as po
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

import cdgrad

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "optimizers.json"
TORCH, PYTORCH_OPTIMIZER = torch.__version__.split("+")[0], version("pytorch_optimizer")
CREATE_GRAPH = "Using backward\\(\\) with create_graph=True"
IMAGES = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 3
METRIC = cdgrad.Sobolev(0.1)
# Written out, so that a mistake in `select` cannot agree with itself.
AXES = {"0.weight": (0, 1), "2.weight": (1, 1)}
LINEAR_AXES = {"4.weight": (0, 1)}

Closure = Callable[[], torch.Tensor]
Hook = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Case:
    """One optimizer in one variant."""

    name: str
    variant: str
    build: Callable[[nn.Module], Any]
    linear: bool = False
    ways: tuple[str, ...] = ("step", "closure")
    steps: int = 3
    create_graph: bool = False
    distributed: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}"


class Outcome(NamedTuple):
    works: bool
    why: str


@functools.cache
def outcome(case: Case) -> Outcome:
    """Whether attaching works or is refused, and why; an assertion error if it is neither."""
    with group_of_one() if case.distributed else contextlib.nullcontext():
        model = network()
        optimizer = case.build(model)
        try:
            cdgrad.attach(optimizer, model, METRIC, linear=case.linear)
        except (TypeError, ValueError) as error:
            assert not getattr(optimizer, "_optimizer_step_pre_hooks", None), f"{case}: refused, yet hooked"
            return Outcome(False, str(error))
        for way in case.ways:
            attached, by_hand, plain = (weights_after(case, way, how) for how in ("attach", "hand", "plain"))
            assert torch.equal(attached, by_hand), f"{case} by {way}: not what directing by hand gives"
            assert not torch.equal(attached, plain), f"{case} by {way}: silently nothing"
    return Outcome(True, case.note)


@contextlib.contextmanager
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def weights_after(case: Case, way: str, how: str) -> torch.Tensor:
    """The weights of `network` after some steps; `way` names the calling convention."""
    model = network()
    optimizer = case.build(model)
    if how == "attach":
        cdgrad.attach(optimizer, model, METRIC, linear=case.linear)

    @torch.enable_grad()
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(IMAGES), LABELS)
        loss.backward(create_graph=case.create_graph)
        if how == "hand":
            direct_by_hand(model, LINEAR_AXES if case.linear else AXES)
        return loss

    for _ in range(case.steps):
        match way:
            case "closure":
                optimizer.step(closure)
            case "gradients, then closure":
                closure()
                optimizer.step(closure)
            case "gradients, then loss":
                loss = closure()
                optimizer.step(lambda loss=loss: float(loss))
            case _:
                closure()
                optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def network() -> nn.Sequential:
    """One convolution, one transposed one and one linear layer, the same every time."""
    torch.default_generator.manual_seed(0)  # manual_seed would also queue a seed, and a stack, for each GPU
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.Flatten(), nn.Linear(100, 3)
    )


def direct_by_hand(model: nn.Module, axes: dict[str, tuple[int, int]] = AXES) -> None:
    grads = [model.get_parameter(name).grad for name in axes]
    dims, groups = zip(*axes.values(), strict=True)
    cdgrad.channel_directed_([grad for grad in grads if grad is not None], METRIC, dims, groups)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


# torch.optim: each class in each variant that its signature names and this machine runs. -----------

VARIANTS: dict[str, dict[str, Any]] = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}
MATRICES = {"linear": True, "note": "holds matrices only, so attached with `linear=True`"}


def torch_cases() -> Iterator[Case]:
    for name, kind in vars(torch.optim).items():
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer:
            known = inspect.signature(kind).parameters
            for variant, options in VARIANTS.items():
                if options.keys() <= known.keys():
                    yield torch_case(name, kind, variant, options)
            if "foreach" not in known:
                yield torch_case(name, kind, "default", {})


def torch_case(name: str, kind: Callable[..., Optimizer], variant: str, options: dict[str, Any]) -> Case:
    case = functools.partial(Case, f"torch.optim.{name}", variant)
    match name:
        case "LBFGS":
            return case(lambda model: kind(model.parameters(), max_iter=3), ways=("closure",))
        case "Muon":
            return case(lambda model: kind(matrices(model)), **MATRICES)
        case "SparseAdam":
            return case(lambda model: kind(nn.Embedding(4, 2, sparse=True).parameters()))
        case _:
            return case(lambda model: kind(model.parameters(), **options))


def runs_here(case: Case) -> bool:
    """Without cdgrad. Capturable steps exist on accelerators only, fused ones for some optimizers."""
    if case.variant in ("capturable", "fused"):
        try:
            weights_after(case, case.ways[0], "plain")
        except (RuntimeError, AssertionError):
            return False
    return True


# pytorch_optimizer: all that it lists, and its wrappers. -------------------------------------------

MUONS = ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")
HESSIAN = {"create_graph": True, "note": "its Hessian estimate stays that of the loss"}
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "Lookahead": lambda model: po.Lookahead(SGD(model.parameters(), lr=0.1), k=2),
    "OrthoGrad": lambda model: po.OrthoGrad(SGD(model.parameters(), lr=0.1)),
    "PCGrad": lambda model: po.PCGrad(SGD(model.parameters(), lr=0.1)),
    "SafeFP16Optimizer": lambda model: po.SafeFP16Optimizer(SGD(model.parameters(), lr=0.1)),
    "ScheduleFreeWrapper": lambda model: training(po.ScheduleFreeWrapper(SGD(model.parameters(), lr=0.1))),
    "TRAC": lambda model: po.TRAC(SGD(model.parameters(), lr=0.1)),
    "FriendlySAM": lambda model: po.FriendlySAM(model.parameters(), SGD, lr=0.1),
    "LookSAM": lambda model: po.LookSAM(model.parameters(), SGD, lr=0.1),
    "SAM": lambda model: po.SAM(model.parameters(), SGD, lr=0.1),
    "WSAM": lambda model: po.WSAM(model, model.parameters(), SGD, lr=0.1),
    "GSAM": lambda model: gsam(model),
}


def listed_cases() -> Iterator[Case]:
    for listed in po.get_supported_optimizers():
        kind = cast(Callable[..., Any], po.load_optimizer(listed))
        name = kind.__name__
        if kind.__module__.startswith("torch."):
            continue
        known = inspect.signature(kind).parameters
        for variant, options in {"default": {}, "foreach": {"foreach": True}}.items():
            if options.keys() <= known.keys():
                yield listed_case(name, kind, variant, options)


def listed_case(name: str, kind: Callable[..., Any], variant: str, options: dict[str, Any]) -> Case:
    case = functools.partial(Case, name, variant)
    match name:
        case "AdaLOMO" | "AdamMini" | "LOMO":
            return case(lambda model: kind(model, **options))
        case "AdaHessian" | "SophiaH":
            return case(lambda model: kind(model.parameters(), **options), **HESSIAN)
        case "AliG":
            return case(
                lambda model: kind(model.parameters(), **options), ways=("gradients, then loss", "closure")
            )
        case "BSAM":
            return case(
                lambda model: kind(model.parameters(), num_data=6, **options),
                ways=("gradients, then closure",),
            )
        case "Ranger21":
            return case(lambda model: kind(model.parameters(), num_iterations=9, **options))
        case "SpectralSphere":
            return case(lambda model: kind(matrices(model), **options), **MATRICES)
        case "ScheduleFreeAdamW" | "ScheduleFreeSGD":
            return case(lambda model: training(kind(model.parameters(), **options)))
        case "AdaShift":
            return case(lambda model: kind(model.parameters(), keep_num=2, **options))
        case "RAdam" | "ScheduleFreeRAdam":  # do not move before the sixth step
            return case(lambda model: training(kind(model.parameters(), **options)), steps=7)
        case "SaRA":
            return case(lambda model: kind(model.parameters(), lr=1e-3, threshold=1.0, **options))
        case "DeMo":
            return case(lambda model: kind(matrices(model), **options), distributed=True, **MATRICES)
        case _ if name in MUONS:
            distributed = name == "DistributedMuon"
            return case(lambda model: kind(muon_groups(model), **options), distributed=distributed)
        case _:
            return case(lambda model: kind(model.parameters(), **options))


def wrapper_cases() -> Iterator[Case]:
    for name, build in WRAPPERS.items():
        yield Case(name, "wrapper", build)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    groups = {ndim > 1: [p for p in model.parameters() if (p.ndim > 1) == (ndim > 1)] for ndim in (1, 2)}
    return [{"params": params, "use_muon": use_muon} for use_muon, params in groups.items()]


def training(optimizer: Any) -> Any:
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def gsam(model: nn.Module) -> Any:
    base = SGD(model.parameters(), lr=0.1)
    rates = po.ConstantLR(base, factor=1)
    rho = po.ProportionScheduler(rates, max_lr=0.1, min_lr=0.1, max_value=0.05, min_value=0.05)
    return po.GSAM(model.parameters(), base, model, rho)


CASES = (*torch_cases(), *listed_cases(), *wrapper_cases())


# The record. ---------------------------------------------------------------------------------------


def committed() -> dict[tuple[str, str], Outcome]:
    """The committed record, from which docs/optimizers.md is generated."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["outcomes"]
    return {(row["name"], row["variant"]): Outcome(row["works"], row["why"]) for row in rows}


def main() -> None:
    warnings.filterwarnings("ignore", CREATE_GRAPH)
    rows = [
        {"name": case.name, "variant": case.variant, **outcome(case)._asdict()}
        for case in CASES
        if runs_here(case)
    ]
    record = {"torch": TORCH, "pytorch_optimizer": PYTORCH_OPTIMIZER, "outcomes": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RECORD}; now run make pages")


if __name__ == "__main__":
    main()
