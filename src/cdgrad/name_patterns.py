"""Shell patterns of parameter names, as `include`, `exclude` and `blocks` have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from cdgrad.channel_axis import LAZY
from cdgrad.messages import first_few

Patterns = str | Collection[str] | None


def matched_names(patterns: Patterns, names: Sequence[str], argument: str) -> dict[str, list[str]]:
    """The names that each of the shell patterns matches.

    Raises:
        TypeError: neither a pattern nor several.
        ValueError: a pattern without a match.
    """
    several = [patterns] if isinstance(patterns, str) else patterns or ()
    if not isinstance(several, Collection) or not all(isinstance(pattern, str) for pattern in several):
        raise TypeError(
            f"{argument} must be a shell pattern of parameter names or a list of them, such as 'layer1.*'; "
            f"got {patterns!r}"
        )
    matches: dict[str, list[str]] = {}
    for pattern in several:
        matches[pattern] = hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no parameter; names are "
                f"{first_few(names, 4) or 'none'} "
                f"(shell patterns of whole names, such as 'layer1.*')"
            )
    return matches


def refuse_idle_pattern(argument: str, pattern: str, axes: Mapping[str, tuple[int, int] | str]) -> None:
    """Refuse a pattern that matches nothing that can be processed, now or once it is materialized."""
    reasons = {name: axis for name, axis in axes.items() if isinstance(axis, str) and axis != LAZY}
    if len(reasons) == len(axes):
        name, reason = next(iter(reasons.items()))
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise ValueError(
            f"{argument} pattern {pattern!r} matches only parameters that cannot be processed: {name} "
            f"({reason}){more}; name weights of convolutions"
        )
