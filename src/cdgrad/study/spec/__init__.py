"""What a study compares: a TOML file read, checked key by key, and held as frozen values."""

from cdgrad.study.spec.measure import ERROR, Measure
from cdgrad.study.spec.parse import builtin_names, load, parse
from cdgrad.study.spec.rounding import with_rounding
from cdgrad.study.spec.rules import first_difference
from cdgrad.study.spec.setting import (
    AUGMENTATIONS,
    DATA,
    DIRECTIONS,
    MODELS,
    NO_METRIC,
    OPTIONS,
    RESCALES,
    TUNINGS,
    Arm,
    EntrySetting,
    LoopSetting,
    Model,
    Optimizer,
    Schedule,
    Setting,
    Task,
    as_json,
)
from cdgrad.study.spec.space import Dimension, Tuning, Values
from cdgrad.study.spec.study import Contrast, Spec, Tables

# fmt: off
__all__ = [
    "AUGMENTATIONS", "DATA", "DIRECTIONS", "ERROR", "MODELS", "NO_METRIC", "OPTIONS", "RESCALES",
    "TUNINGS", "Arm", "Contrast", "Dimension", "EntrySetting", "LoopSetting", "Measure", "Model",
    "Optimizer", "Schedule", "Setting", "Spec", "Tables", "Task", "Tuning", "Values",
    "as_json", "builtin_names", "first_difference", "load", "parse",
    "with_rounding",
]
