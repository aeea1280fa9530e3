"""Text of unknown origin on one line, as messages need it.

Names, keys and messages come from specifications, modules, files and libraries: they may have many lines and
characters that steer a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence


def one_line(text: object) -> str:
    """`text` on one line, with a space for each character that steers a terminal or reverses the text."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text_of(text).split()))


def first_few(names: Sequence[object], most: int = 3) -> str:
    """The first names of several, with dots for the others."""
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def named(error: BaseException) -> str:
    """The kind and the message of an error, on one line."""
    return one_line(f"{type(error).__name__}: {text_of(error)}")


def brief(error: BaseException) -> str:
    """As `named`, with the first line of the message alone: some libraries append pages of advice."""
    return one_line(f"{type(error).__name__}: {text_of(error).strip().partition(chr(10))[0]}").removesuffix(
        ": "
    )


def text_of(value: object) -> str:
    """The text of any value, whose own code may raise an error."""
    try:
        return str(value)
    except Exception as error:
        return f"(its text raised {type(error).__name__})"
