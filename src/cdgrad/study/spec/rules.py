"""Frozen dataclasses from TOML tables: types and metadata are the rules, errors name the key.

A field's metadata says what its type cannot: `one_of`, `at_least`, `within`, `POSITIVE`. A field called
``arguments`` collects the keys that the class does not know.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import date, time
from typing import Any, TypedDict, TypeGuard, TypeVar, cast, get_type_hints

from cdgrad.study import StudyError

T = TypeVar("T")
MOST = 10**9  # of a count, such as epochs or images
MOST_SEEDS = 100_000
SEEDED = 2**32  # torch's generator on the CPU and numpy's start alike for seeds that are equal modulo this
IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Rule(TypedDict, total=False):
    """What the value of a key may be, beyond its type, and how reports and records treat the key.

    Attributes:
        positive: a positive number.
        minimum, maximum, or_all: an integer in this range, or with `or_all` the text ``"all"``.
        within: a number x with low <= x < below.
        choices, importable: one of some texts, or a ``module:callable`` such as `importable`, if not empty.
        some_of: a list of different texts among these.
        omitted_at_default: records do not have the key where it is at its default.
        words: what a report calls an arm's option that is not at its default; ``{}`` is its value.
        of_metric: whether an arm's option has no effect without a metric.
    """

    positive: bool
    minimum: int
    maximum: int
    or_all: bool
    within: tuple[float, float]
    choices: tuple[str, ...]
    importable: str
    some_of: tuple[str, ...]
    omitted_at_default: bool
    words: str
    of_metric: bool


POSITIVE: Rule = {"positive": True}


def at_least(minimum: int, *, or_all: bool = False, most: int = MOST) -> Rule:
    """An integer from `minimum` to `most`, or with `or_all` the text ``"all"``."""
    return {"minimum": minimum, "maximum": most, "or_all": or_all}


def within(low: float, below: float) -> Rule:
    """A number x with low <= x < below."""
    return {"within": (low, below)}


def one_of(*choices: str, importable: str = "") -> Rule:
    """One of some texts, or a ``module:callable``, of which `importable` is an example."""
    return {"choices": choices, "importable": importable}


def some_of(*choices: str) -> Rule:
    """A list of different choices, in any order."""
    return {"some_of": choices}


def read(cls: type[T], value: object, where: str, name: str, *, stored: bool = False) -> T:
    """An instance of dataclass `cls` from a TOML table; keys beyond its own go to `arguments`.

    An attribute ``refusal`` of the instance says why no run may begin with its values, such as a key without
    effect. A `stored` specification may have them: its runs have ended, and must stay readable.

    Raises:
        StudyError: a key is unknown or missing, or its value is not allowed; with the key.
    """
    table = as_table(value, where, name)
    known = {f.name: f for f in fields(cast(Any, cls))}
    free = known.pop("arguments", None) is not None
    required = [k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    prefix = f"{where}." if where else ""
    choices = {key: _listed(f.metadata) for key, f in known.items() if "choices" in f.metadata}
    check_keys(table, None if free else known, required, prefix, name, choices)
    types = get_type_hints(cls)
    values = {k: _checked(v, types[k], known[k], prefix + k, name) for k, v in table.items() if k in known}
    if free:
        values["arguments"] = {k: v for k, v in table.items() if k not in known}
    try:
        instance = cls(**values)
        if (refusal := getattr(instance, "refusal", "")) and not stored:
            raise ValueError(refusal)
        return instance
    except ValueError as error:  # values that are allowed one by one and not together
        raise StudyError(f"{name}: {prefix}{error}") from None


def check_keys(
    table: Mapping[str, object],
    known: Iterable[str] | None,
    required: Iterable[str],
    prefix: str,
    name: str,
    allowed: Mapping[str, object] | None = None,
) -> None:
    """Refuse a key that is not `known` (None: any key is), and the lack of a `required` one.

    `allowed` says what keys must be, where that is a list or a range.
    """
    known = None if known is None else list(known)
    for key in table:
        if known is not None and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{close[0]}? " if close else ""
            raise StudyError(f"{name}: unknown key {prefix}{key}; {hint}known are {', '.join(known)}")
    for key in required:
        if key not in table:
            must_be = f"; it must be {allowed[key]}" if allowed and key in allowed else ""
            given = f"; the table has {', '.join(map(str, table)):.200}" if known is None and table else ""
            raise StudyError(f"{name}: {prefix}{key} is missing{must_be}{given}")


def _listed(rules: Mapping[str, Any]) -> str:
    """What `one_of` allows, in words."""
    choices, example = rules["choices"], rules.get("importable")
    form = f"module:callable, such as {example}" if example else ""
    return "one of " * bool(choices) + ", ".join(choices) + " or " * bool(choices and form) + form


def _checked(value: object, kind: object, declared: Field[Any], where: str, name: str) -> object:
    rules = cast(Rule, declared.metadata)
    if kind is float and is_a(value, int):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if "choices" in rules:
        choices, example = rules["choices"], rules.get("importable")
        importable = isinstance(value, str) and bool(IMPORTABLE.fullmatch(value))
        if value not in choices and not (example and importable):
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise StudyError(f"{error_at(name, where, value, _listed(rules))}{hint}")
    elif rules.get("positive"):
        if not (is_a(value, float) and value > 0 and math.isfinite(value)):
            raise error_at(name, where, value, "a positive number")
    elif "within" in rules:
        low, below = rules["within"]
        if not (is_a(value, float) and low <= value < below):
            allowed = f"a number of at least {low:g}" + (f" and below {below:g}" if below < math.inf else "")
            raise error_at(name, where, value, allowed)
    elif "minimum" in rules:
        low, high = rules["minimum"], rules.get("maximum", MOST)
        if not (is_a(value, int) and low <= value <= high) and not (rules.get("or_all") and value == "all"):
            above = f" and at most {high}" if is_a(value, int) and value > high else ""
            other = ' or "all"' if rules.get("or_all") else ""
            raise error_at(name, where, value, f"an integer of at least {low}{above}{other}")
    elif "some_of" in rules:
        known = rules["some_of"]
        given = as_list(value)
        if given is None or len({v for v in known if v in given}) < len(given):
            raise error_at(name, where, value, f"a list of different ones of {', '.join(known)}")
        return tuple(given)
    elif kind in (str, bool, bool | None):
        if not is_a(value, str if kind is str else bool):
            raise error_at(name, where, value, "a string" if kind is str else "true or false")
    else:
        return as_table(value, where, name)
    return value


def is_a(value: object, kind: type[T]) -> TypeGuard[T]:
    """isinstance, but a truth value is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def as_table(value: object, where: str, name: str) -> dict[str, Any]:
    """`value`, which must be a table, else StudyError; `where` is its key and `name` the specification's."""
    if not isinstance(value, dict):
        raise error_at(name, where, value, "a table of keys")
    return cast(dict[str, Any], value)


def as_list(value: object) -> list[object] | None:
    """`value` if it is a list."""
    return cast(list[object], value) if isinstance(value, list) else None


def seeds(value: object, where: str, name: str, *, stored: bool = False) -> tuple[int, ...]:
    """A count n for the seeds 0..n-1, or a list of them.

    Raises:
        StudyError: it is neither, or two seeds are equal, in one that is not `stored` also modulo `SEEDED`.
    """
    allowed = (
        f"a count of at least 1 and at most {MOST_SEEDS}, or a list of different integers from 0 to 2**63 - 1"
    )
    if is_a(value, int) and 1 <= value <= MOST_SEEDS:
        return tuple(range(value))
    given = as_list(value)
    numbers = [s for s in given or () if is_a(s, int) and 0 <= s < 2**63]
    if not given or len(set(numbers)) < len(given):
        raise error_at(name, where, value, allowed)
    if len({s % SEEDED for s in numbers}) < len(numbers) and not stored:
        raise error_at(
            name, where, value, "seeds that differ in their last 32 bits, which start the generators"
        )
    return tuple(numbers)


@dataclass(frozen=True)
class Until:
    """The table ``seeds = { until, most }``: seeds are added until all comparisons of a cell are decided.

    Attributes:
        until: a comparison is decided where its anytime-valid interval is narrower than this, in points or in
            the unit of ``[metric]``, or where it shows a difference.
        most: number of seeds at which a cell ends in any case.
    """

    until: float = field(metadata=POSITIVE)
    most: int = field(metadata=at_least(2, most=MOST_SEEDS))


def error_at(name: str, where: str, value: object, allowed: str) -> StudyError:
    """The error for a value at key `where`: what is allowed, and what came."""
    return StudyError(f"{name}: {where} must be {allowed}; got {value!r:.200}")


def check_values(table: Mapping[str, object], name: str, where: str = "", depth: int = 1) -> None:
    """Refuse what TOML allows and no setting can use: dates, nan, nulls, huge integers, deep tables."""
    if depth > 20:
        raise StudyError(f"{name}: {where:.60} has more than 20 levels of tables and lists; use fewer")
    for key, value in table.items():
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict):
            check_values(cast(dict[str, object], value), name, path, depth + 1)
        elif isinstance(value, list):
            each = cast(list[object], value)
            check_values({str(k): v for k, v in enumerate(each)}, name, path, depth + 1)
        elif isinstance(value, date | time):
            raise error_at(name, path, str(value), "a string, number or truth value; put a date in quotes")
        elif isinstance(value, str) and "\0" in value:  # which no path and no table of SQLite takes
            raise error_at(name, path, value, "text without null characters")
        elif isinstance(value, float) and math.isnan(value):
            raise error_at(name, path, value, "a number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise StudyError(f"{name}: {path} must be an integer of at most 64 bits; got a larger one")


def unique(pairs: Iterable[tuple[str, T]], where: str, name: str) -> dict[str, T]:
    """The pairs as a table.

    Raises:
        StudyError: a key comes twice, as TOML allows of ``a.b = 1`` and ``"a.b" = 2``.
    """
    table: dict[str, T] = {}
    for key, value in pairs:
        if key in table:
            raise StudyError(f'{name}: {where}."{key}" is given twice, in quotes and with dots; remove one')
        table[key] = value
    return table


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables under keys such as ``optimizer.lr``."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from dotted(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield prefix + key, value


def first_difference(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> str:
    """The first key at which two configurations differ, with both values; empty where none does."""
    for key in sorted({*old, *new}):
        a, b, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            tables = cast(Mapping[str, object], a), cast(Mapping[str, object], b)
            if inner := first_difference(*tables, f"{path}."):
                return inner
        elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):  # which tells 1 from 1.0
            return f"{path} was {a!r} and is {b!r}"
    return ""
