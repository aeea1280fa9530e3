"""The ``cdgrad`` command: arguments in, exit status out. 0 done, 1 failed, 2 misused, 130 interrupted.

Each command imports what it needs when it runs, so that ``--help`` needs neither torch nor the extras.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cdgrad
from cdgrad.study import StudyError

if TYPE_CHECKING:
    from cdgrad.study.spec import Spec
    from cdgrad.study.workers import Engine

_EXTRAS = {"matplotlib", "optuna", "pyarrow", "rich", "sklearn", "scipy"}


class UsageError(Exception):
    """An argument that names something that does not exist or is not allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Expected failures are reported in one line on stderr."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(with_bench="bench" in given).parse_args(given)
    # As under python -m: "mynet:build" finds mynet.py in the folder of the user, here and in workers.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return options.command(options)
    except UsageError as error:
        return _failed(2, str(error))
    except StudyError as error:
        return _failed(1, str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        return _failed(1, f"{error.name} is not installed; run pip install 'cdgrad[study]'")
    except KeyboardInterrupt:
        return _failed(130, "interrupted")
    except BrokenPipeError:
        # The reader of a pipe, such as head, has left; closing stderr keeps Python from complaining.
        sys.stderr.close()
        return 1


def _study(options: argparse.Namespace) -> int:
    from cdgrad.study.run import run_study

    spec = _spec(options.spec)
    folder = Path(options.out or spec.out)
    engine = _engine(options, folder)
    try:
        made = run_study(spec, folder, options.workers or spec.workers, engine)
    except KeyboardInterrupt:
        return _failed(130, f"interrupted; {folder} keeps what finished; the same command goes on")
    failed = [run for run in made if run.status == "failed"]
    _print_report(folder)
    if failed:
        return _failed(1, f"{len(failed)} of {len(made)} runs failed, the first: {failed[0].message}")
    return 0


def _engine(options: argparse.Namespace, folder: Path) -> Engine:
    on_gpu = options.device == "cuda"
    if options.gpus_per_run is not None and not on_gpu:
        raise UsageError("--gpus-per-run needs --device cuda")
    if options.engine == "ray":
        from cdgrad.study import ray_engine

        gpus = (options.gpus_per_run or 1.0) if on_gpu else 0.0
        return partial(ray_engine.run_all, address=options.address or "auto", gpus_per_run=gpus)
    for name in ("address", "gpus_per_run"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is for --engine ray; local workers share the GPUs by turns")
    from cdgrad.study import local_engine
    from cdgrad.study.run import CHECKPOINTS

    gpus = local_engine.visible_gpus() if on_gpu else ()
    return partial(local_engine.run_all, gpus=gpus, checkpoints=folder / CHECKPOINTS)


def _report(options: argparse.Namespace) -> int:
    _print_report(Path(options.folder))
    return 0


def _print_report(folder: Path) -> None:
    from rich.console import Console

    from cdgrad.study import records, render, report

    results = report.read(folder)
    document = report.document(results)
    files = report.write(results, folder, document)
    console = Console(highlight=False, soft_wrap=False)
    render.to_terminal(document, console)
    plots = [str(path) for path in files if path.suffix == ".png"]
    others = [str(path) for path in files if path.suffix != ".png"]
    others += plots if len(plots) <= 3 else [f"{folder / '*.png'} ({len(plots)} plots)"]
    print("\nwritten:", *others, f"records: {folder / records.FILE}", sep="\n")


def _train(options: argparse.Namespace) -> int:
    import torch

    from cdgrad.study import parallel
    from cdgrad.study.single import run_single, setting_of

    spec = _spec(options.spec)
    arm, cell = options.arm or spec.baseline, options.cell or next(iter(spec.cells))
    for kind, name, known in (("arm", arm, spec.arms), ("cell", cell, spec.cells)):
        if name not in known:
            raise UsageError(f"{spec.name} has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
    if options.weights and spec.entry:
        raise UsageError(f"{spec.entry} keeps its network to itself: --weights is not for it")
    if options.weights and not options.weights.absolute().parent.is_dir():
        raise _no_folder(options.weights, "--weights")  # before training, whose result it would lose
    setting = setting_of(spec, cell, arm, options.set or ())
    torch.set_num_threads(options.threads)
    with parallel.join(options.parallel, options.device) as ranks:
        outcome = run_single(
            arm,
            setting,
            options.seed,
            device=ranks.device,
            checkpoint=options.checkpoint,
            tensorboard=options.tensorboard,
            ranks=ranks,
        )
        weights = ranks.state_dict(outcome.model) if options.weights else None
        if ranks.rank == 0:
            print(
                f"{arm}, seed {options.seed}: {outcome.status}, {spec.evaluate} error {outcome.error:.2f} %"
            )
            if weights is not None:
                try:
                    torch.save(weights, options.weights)
                except (OSError, RuntimeError) as error:
                    raise StudyError(f"cannot write the weights: {error}") from error
                print(f"weights: {options.weights}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from cdgrad.study.inspection import listing, load_model, roughness_table, selection_of

    model = load_model(options.model, options.checkpoint, options.image_shape, options.classes)
    selection = selection_of(model, options.direction, options.linear, options.include, options.exclude)
    print(listing(selection))
    if options.checkpoint:
        print(f"\n{roughness_table(selection)}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from cdgrad import bench

    if options.out and not options.out.absolute().parent.is_dir():
        raise _no_folder(options.out, "--out")
    return bench.main(options)


def _no_folder(file: Path, flag: str) -> UsageError:
    return UsageError(f"there is no folder {file.parent} for {flag}; create it first")


def _spec(source: str) -> Spec:
    from cdgrad.study import spec

    try:
        return spec.load(source)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None


def _parser(*, with_bench: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cdgrad", description="Channel-directed gradients, and paired studies of whether they help."
    )
    parser.add_argument("--version", action="version", version=f"cdgrad {cdgrad.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    study = commands.add_parser(
        "study",
        help="run or resume a paired study",
        description="Run or resume a paired study: what is recorded already is not run again.",
    )
    study.add_argument("spec", metavar="SPEC", help="a TOML file, or a built-in name such as quickstart")
    study.add_argument(
        "--out", metavar="DIR", help="folder of the records (default: the spec's, or runs/NAME)"
    )
    study.add_argument(
        "--workers", type=_count, metavar="N", help="processes, of one thread each (default: the spec's)"
    )
    study.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where runs are made (default: local)"
    )
    study.add_argument("--address", help="of the Ray cluster (default: the one that this machine is part of)")
    study.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what runs train on (default: cpu)"
    )
    study.add_argument(
        "--gpus-per-run", type=_share, metavar="X", help="with Ray and cuda: such as 0.25 (default: 1)"
    )
    study.set_defaults(command=_study)

    report = commands.add_parser(
        "report",
        help="print the tables of a study, write its report",
        description="Print the tables of a study; write report.html, report.md, runs.csv and plots.",
    )
    report.add_argument("folder", metavar="DIR", help="the study's --out")
    report.set_defaults(command=_report)

    train = commands.add_parser(
        "train",
        help="one run of a study, without a record",
        description="Make one run of a study with the same code, printing every epoch; nothing is recorded.",
    )
    train.add_argument(
        "spec",
        metavar="SPEC",
        nargs="?",
        default="quickstart",
        help="as in cdgrad study (default: quickstart)",
    )
    train.add_argument("--arm", help="default: the baseline")
    train.add_argument("--cell", help="default: the first")
    train.add_argument("--seed", type=_seed, default=0)
    train.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="another value, such as schedule.epochs=3, metric=sobolev:lam=0.01 or lam=0.1; may be repeated",
    )
    train.add_argument("--threads", type=_count, default=1, metavar="N", help="default: 1, as in a study")
    train.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    train.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="go on from there, and keep the state there after every epoch until the run is over",
    )
    train.add_argument("--weights", type=Path, metavar="FILE", help="save the trained weights")
    train.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the curves for TensorBoard")
    train.add_argument(
        "--parallel",
        choices=("ddp", "fsdp2"),
        help="share the run among the processes of torchrun --nproc-per-node N -m cdgrad train ...",
    )
    train.set_defaults(command=_train)

    inspect = commands.add_parser(
        "inspect",
        help="which tensors of a model are processed, and why",
        description="Print which parameters of a model are processed, along which axis, and why.",
    )
    inspect.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="small-cnn",
        help="a built-in name such as resnet20, timm:NAME, torchvision:NAME, or module:callable that is or "
        "returns a torch.nn.Module (default: small-cnn)",
    )
    inspect.add_argument(
        "--image-shape",
        type=_image_shape,
        metavar="CxHxW",
        help="channels, height and width of the images (default: 1x8x8 for small-cnn, 3x32x32 for others)",
    )
    inspect.add_argument("--classes", type=_count, metavar="N", help="number of outputs (default: 10)")
    inspect.add_argument("--direction", choices=("output", "input", "height", "width"), default="output")
    inspect.add_argument("--linear", action="store_true", help="process Linear weights, too")
    inspect.add_argument(
        "--include",
        action="append",
        metavar="PATTERN",
        help="only parameters so named; * and ? match, may be repeated",
    )
    inspect.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these parameters alone")
    inspect.add_argument(
        "--checkpoint", metavar="FILE", help="a state dict: print its roughness along the channel, too"
    )
    inspect.set_defaults(command=_inspect)

    bench = commands.add_parser(
        "bench",
        help="what the operator costs here",
        description="Time every metric and backend on the convolutions of common networks, over the time "
        "of multiplying the same tensors by a number; with peers, and whole training steps.",
    )
    bench.set_defaults(command=_bench)
    if with_bench:
        from cdgrad.bench import add_arguments  # imports torch, which takes seconds

        add_arguments(bench)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _image_shape(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"must be like 3x32x32, channels first, got {text!r}")
    channels, height, width = map(int, sides)
    return channels, height, width


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not (0 < share < math.inf):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return share


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _failed(status: int, message: str) -> int:
    print(f"cdgrad: {message}", file=sys.stderr)
    return status
