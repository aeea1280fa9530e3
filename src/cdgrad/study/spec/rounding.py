"""The noise floor of a study: an arm that is the baseline in exact arithmetic, and rounds otherwise.

Sun, Lao, Yezzi and Sundaramoorthi (arXiv 2206.02001) show that rounding alone moves a trained network as far
as another seed does.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from cdgrad.study import StudyError
from cdgrad.study.spec.parse import parse
from cdgrad.study.spec.study import Spec

ARM = "rounded"


def with_rounding(spec: Spec, k: int) -> Spec:
    """The study with a further arm ``rounded``: the baseline with the option ``rounding = k``.

    The arm is part of the text that the records keep. A study that has this arm already is returned as it is.

    Raises:
        StudyError: the study has another arm of that name, an `entry`, or arms in one inline table.
    """
    base = spec.arms[spec.baseline]
    tuned = {"tuning": "baseline"} if spec.tuning and base.tuning == "own" else {}
    expected = replace(base, rounding=k, **tuned)
    if spec.arms.get(ARM, expected) != expected or base.rounding == k:
        raise StudyError(
            f"{spec.name}: --rounding adds an arm {ARM}, with rounding = {k}, and the study has an arm of "
            f"that name or a baseline that rounds so; rename the arm, or use another number"
        )
    if ARM in spec.arms:
        return spec
    own: dict[str, Any] = tomllib.loads(spec.text)["arms"][spec.baseline]
    lines = [f"{_key(key)} = {_toml(value)}" for key, value in {**own, **tuned, "rounding": k}.items()]
    text = "\n".join([spec.text.rstrip("\n"), "", f"[arms.{ARM}]", *lines, ""])
    try:
        tomllib.loads(text)
    except ValueError:
        raise StudyError(
            f"{spec.name}: --rounding cannot add to arms in one inline table; write each as [arms.NAME]"
        ) from None
    return replace(parse(text, spec.name), folder=spec.folder)


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _toml(value: object) -> str:
    """A value that TOML gave, as TOML; JSON's strings, numbers and truth values are TOML's."""
    if isinstance(value, dict):
        pairs = cast(Mapping[str, object], value).items()
        return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, cast(list[object], value))) + "]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"{value:+}"
    return json.dumps(value, ensure_ascii=False)
