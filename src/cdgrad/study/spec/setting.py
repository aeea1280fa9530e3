"""What determines the numbers of a run: the tables of a specification as typed values.

A field's metadata is the rule for its value in TOML. The fingerprint of a `Setting` identifies the records
that belong to it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from cdgrad.study import StudyError
from cdgrad.study.spec.measure import ERROR
from cdgrad.study.spec.networks import NETWORKS, check_sizes
from cdgrad.study.spec.rules import POSITIVE, Rule, at_least, one_of, some_of, within

DATA = ("digits", "fake")
MODELS = tuple(NETWORKS)
INITIALIZATIONS = ("default", "fan-out")
AUGMENTATIONS = ("pad-crop", "flip", "cutout")
DIRECTIONS = ("output", "input", "height", "width")
RESCALES = ("none", "norm")
DIAGNOSTICS = ("divergence", "sharpness")
TUNINGS = ("own", "baseline", "none")
NO_METRIC = "none"


def _later(rules: Rule | None = None) -> Rule:
    """Metadata of a field that records do not have where it is at its default.

    Every key that is added to a specification needs it: the fingerprints of runs that were recorded before
    the key existed must stay what they are.
    """
    return {**(rules or {}), "omitted_at_default": True}


@dataclass(frozen=True)
class Task:
    """Images of classes, and how many of them a seed draws to train, to validate and to test.

    Attributes:
        data: ``"digits"``, ``"fake"``, a local folder, or ``"hub:NAME"``, a data set on the Hugging Face
            hub.
        train: count of training images, or ``"all"`` that are left.
        validation: count of validation images; never from an official test split.
        test: count of test images, or ``"all"``: the official test split, or what is left of the only one.
        train_split, test_split: names of the splits, where they are not ``train`` and ``test`` (or
            ``validation``, where there is no test).
        image, label: names of the columns, where there is more than one of images or labels.
        size: side in pixels that all images are resized to, cropped to a square; 0: as they are.
        augment: random changes of training images, in this order.
        label_noise: share of the training images, rounded to whole images, whose label the seed replaces by
            one of the other classes, each as likely. The labels of validation and test images stay right.
    """

    data: str
    train: int | str = field(metadata=at_least(1, or_all=True))
    validation: int = field(metadata=at_least(1))
    test: int | str = field(default="all", metadata=at_least(1, or_all=True))
    train_split: str = ""
    test_split: str = ""
    image: str = ""
    label: str = ""
    size: int = field(default=0, metadata=at_least(0))
    augment: tuple[str, ...] = field(default=(), metadata=some_of(*AUGMENTATIONS))
    label_noise: float = field(default=0.0, metadata=_later(within(0, 1)))

    @property
    def refusal(self) -> str:
        """Why a key has no effect; empty where all have one."""
        for key in ("train_split", "test_split", "image", "label", "size"):
            if self.data in DATA and getattr(self, key):
                return f'{key} has no effect with data = "{self.data}", which is built in; remove it'
        return ""


@dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
        name: a built-in network, ``timm:NAME``, ``torchvision:NAME``, or your own ``module:callable``.
        initialization: ``"default"``: the network's own; ``"fan-out"``: every convolution's weight normal
            with variance 2 / (k k O), its k x k kernel and O output channels, and its bias 0 (He et al.
            2015).
        arguments: all other keys are the callable's keyword arguments.
    """

    name: str = field(metadata=one_of(*MODELS, importable="mynet:build"))
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    initialization: str = field(default="default", metadata=_later(one_of(*INITIALIZATIONS)))

    def __post_init__(self) -> None:
        check_sizes(self.name, self.arguments)


@dataclass(frozen=True)
class Schedule:
    """How to train, the same in all arms.

    Attributes:
        epochs: passes over the training images.
        batch: images per step of the optimizer.
        warmup: epochs in which the learning rate rises linearly to its initial value.
        decay: what the learning rate does afterwards: fall to 0 along a ``"cosine"``, fall in ``"steps"``,
            or stay (``"none"``).
        step_epochs: with decay ``"steps"``, epochs from one step to the next, counted from the start.
        step_factor: with decay ``"steps"``, what each step multiplies the learning rate by.
        label_smoothing: share of the target that is distributed evenly over all classes.
        ema: decay per step of the exponential moving average whose weights are evaluated; 0: none.
        accumulate: micro-batches that a batch is cut into; their gradients add up to the batch's.
        clip: largest L2 norm of the whole gradient, after the arm's operator; 0: unlimited.
        precision: of the forward pass; ``"bfloat16"`` by autocast, the weights stay float32.
        compile: run the network through torch.compile.
        channels_last: keep images and weights in that memory format.
        test_every_epoch: measure the test error after every epoch, and record beside the last one the
            smallest and the mean of the last ten. Choosing an epoch by the test set is a selection effect:
            the reported error stays that of the last epoch, and trials never read the test set.
        diagnostics: measure after every epoch, without a change of the run: ``"divergence"`` of a second copy
            that rounds otherwise, which doubles the time, and ``"sharpness"`` of the training loss, alone and
            times the learning rate (arXiv 2206.02001).
        graph: execute each step and each evaluation as a CUDA graph: one launch instead of hundreds, with the
            same numbers up to rounding. Left out: on a GPU, if the step can be captured; the record says what
            was done, and why.
    """

    epochs: int = field(metadata=at_least(1))
    batch: int = field(metadata=at_least(1))
    warmup: int = field(default=0, metadata=at_least(0))
    decay: str = field(default="cosine", metadata=one_of("cosine", "steps", "none"))
    label_smoothing: float = field(default=0.0, metadata=within(0, 1))
    ema: float = field(default=0.0, metadata=within(0, 1))
    accumulate: int = field(default=1, metadata=at_least(1))
    clip: float = field(default=0.0, metadata=within(0, math.inf))
    precision: str = field(default="float32", metadata=one_of("float32", "bfloat16"))
    compile: bool = False
    channels_last: bool = False
    step_epochs: int = field(default=0, metadata=_later(at_least(0)))
    step_factor: float = field(default=0.1, metadata=_later(within(0, 1)))
    test_every_epoch: bool = field(default=False, metadata=_later())
    graph: bool | None = field(default=None, metadata=_later())
    diagnostics: tuple[str, ...] = field(default=(), metadata=_later(some_of(*DIAGNOSTICS)))

    def __post_init__(self) -> None:
        if (self.decay == "steps") != (self.step_epochs > 0):
            raise ValueError(
                f'decay = "steps" and step_epochs need each other; got decay = "{self.decay}" and '
                f"step_epochs = {self.step_epochs}"
            )
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be below epochs = {self.epochs}; got {self.warmup}")
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate must be at most batch = {self.batch}; got {self.accumulate}")

    @property
    def refusal(self) -> str:
        """Why a key has no effect; empty where all have one."""
        if self.decay != "steps" and self.step_factor != Schedule.step_factor:
            return f'step_factor has no effect with decay = "{self.decay}", only with "steps"; remove it'
        return ""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer.

    Attributes:
        name: such as ``torch.optim:SGD``; called with the network's parameters.
        lr: initial learning rate.
        arguments: all other keys are the callable's keyword arguments.
    """

    name: str = field(metadata=one_of(importable="torch.optim:SGD"))
    lr: float = field(metadata=POSITIVE)
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


def _option(words: str, rules: Rule | None = None, *, of_metric: bool = False) -> Rule:
    """Metadata of an arm's option.

    Args:
        words: what a report calls the option where it is not at its default; ``{}`` is its value.
        rules: what it may be.
        of_metric: whether it changes nothing without a metric.
    """
    return {**(rules or {}), "words": words, "of_metric": of_metric}


@dataclass(frozen=True)
class ArmOptions:
    """What is done to the gradient.

    Attributes:
        metric: a metric, or ``none``: nothing attached.
        direction, rescale, linear: as in `cdgrad.attach`.
        permute: apply the metric to the channels in a random order, fixed by the run's seed.
        centralize: subtract the mean of each output filter's gradient first.
        rounding: k computes the step with the learning rate k lr and divides the update by k: the same method
            in exact arithmetic, if the optimizer's update is proportional to its learning rate, with other
            rounding errors. Such an arm shows what rounding alone changes (arXiv 2206.02001). 1: the ordinary
            step.
    """

    metric: str = NO_METRIC
    direction: str = field(
        default="output", metadata=_option("along {}", one_of(*DIRECTIONS), of_metric=True)
    )
    rescale: str = field(default="none", metadata=_option("rescale {}", one_of(*RESCALES), of_metric=True))
    linear: bool = field(default=False, metadata=_option("linear too", of_metric=True))
    permute: bool = field(default=False, metadata=_option("channels permuted", of_metric=True))
    centralize: bool = field(default=False, metadata=_option("centralized"))
    rounding: int = field(default=1, metadata=_later(_option("rounded otherwise (k = {})", at_least(1))))

    def words(self) -> list[str]:
        """What a report calls the options that are not at their defaults; the metric apart."""
        changed = [option for option in _OPTIONS if getattr(self, option.name) != option.default]
        return [option.metadata["words"].format(getattr(self, option.name)) for option in changed]


_OPTIONS = tuple(option for option in fields(ArmOptions) if "words" in option.metadata)
OPTIONS = tuple(option.name for option in _OPTIONS)
"""The options of an arm besides its metric."""


@dataclass(frozen=True)
class Arm(ArmOptions):
    """One of the compared methods: what is done to the gradient, and changes to the optimizer.

    Attributes:
        optimizer: keys that replace those of the study's optimizer.
        lr_factor: multiplies the learning rate, also a tuned one: with ``tuning = "baseline"`` the arm has
            this multiple of the baseline's rate.
        values: the arm's values for the user's own training code (`entry`).
        tuning: the source of the arm's values in a study with tuning: its ``"own"`` trials, the values
            chosen for the ``"baseline"``, or ``"none"``: the specification alone.
    """

    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])
    lr_factor: float = field(default=1.0, metadata=POSITIVE)
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    tuning: str = field(default="own", metadata=one_of(*TUNINGS))

    def __post_init__(self) -> None:
        if self.permute and self.direction in ("height", "width"):
            raise ValueError(
                f"permute needs direction output or input, whose axis holds channels; got {self.direction}"
            )

    @property
    def refusal(self) -> str:
        """Why an option has no effect; empty where all have one."""
        if self.metric in (NO_METRIC, "l2"):
            for option in _OPTIONS:
                if option.metadata["of_metric"] and getattr(self, option.name) != option.default:
                    return (
                        f"{option.name} has no effect with metric {self.metric}; set a metric, such as "
                        f"sobolev:lam=0.01, or remove {option.name}"
                    )
        return ""


@dataclass(frozen=True, kw_only=True)
class Setting(ArmOptions):
    """All that determines the numbers of a run, besides its seed: a `LoopSetting` or an `EntrySetting`.

    Attributes:
        evaluate: the split whose error is measured at the end, ``"test"`` or ``"validation"``.
        measure: the name of the study's `Measure`, under which the user's own training code returns its
            result.
    """

    evaluate: str
    measure: str = field(default=ERROR.name, metadata=_later())

    def tables(self) -> tuple[Task, Model, Schedule, Optimizer]:
        """The four tables of a run by the built-in training loop.

        Raises:
            StudyError: the run is of the user's own training code.
        """
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Equal for two settings exactly where all their values are."""
        return hashlib.sha256(json.dumps(as_json(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class LoopSetting(Setting):
    """The setting of a run by the built-in training loop."""

    task: Task
    model: Model
    schedule: Schedule
    optimizer: Optimizer

    def tables(self) -> tuple[Task, Model, Schedule, Optimizer]:
        """The four tables."""
        return self.task, self.model, self.schedule, self.optimizer


@dataclass(frozen=True, kw_only=True)
class EntrySetting(Setting):
    """The setting of a run by the user's own training code.

    Attributes:
        entry: that code, ``module:callable``.
        values: the arm's values for it, under dotted keys.
        percent: whether the result is in percent.
    """

    entry: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    percent: bool = field(default=ERROR.percent, metadata=_later())

    def tables(self) -> tuple[Task, Model, Schedule, Optimizer]:
        """There are none.

        Raises:
            StudyError: always.
        """
        raise StudyError(
            f"{self.entry} runs its own training loop: it has no task, model, schedule or optimizer table"
        )


# The keys that a record has of the other kind of setting: the fingerprints contain them.
_OF_ENTRY: dict[str, Any] = {"entry": "", "values": {}}
_OF_LOOP = dict.fromkeys(("task", "model", "schedule", "optimizer"))


def as_json(setting: Setting) -> dict[str, Any]:
    """The setting as a record keeps it: tuples are lists, and later keys at their defaults are left out."""
    values = asdict(setting)
    for key, value in vars(setting).items():
        if is_dataclass(value):
            _omit_defaults(value, values[key])
    _omit_defaults(setting, values)
    values |= _OF_ENTRY if isinstance(setting, LoopSetting) else _OF_LOOP
    return json.loads(json.dumps(values))


def _omit_defaults(table: Any, values: dict[str, object]) -> None:
    for key in fields(table):
        if key.metadata.get("omitted_at_default") and getattr(table, key.name) == key.default:
            del values[key.name]
