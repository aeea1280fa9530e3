"""What is shown steers no terminal, and what is published names no machine."""

import pytest

from cdgrad.study.shown import lines, named, one_line, published


def test_nothing_that_steers_a_terminal_or_reverses_text_is_left():
    escapes = "a\x1b[31mb\nc\u202ed\u2066e\x9bf\x00g\u200bh\rj\u2028k"
    assert one_line(escapes) == "a [31mb c d e f g h j k"
    assert one_line("é λ 図 ±") == "é λ 図 ±"
    assert lines("  a\x1b\n\tb") == "  a \n\tb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/ada/photos/cat.png: no", "cannot read cat.png: no"),
        ("'/data/ab/c'", "'c'"),
        ("in (C:\\Users\\ada\\x.py)", "in (x.py)"),
        ("/scratch/ada/", "ada"),
        ("cannot read /home/Ada Love/My Photos/cat.png: no", "cannot read cat.png: no"),
        ("C:\\Users\\Ada Love\\x.py is missing", "x.py is missing"),
        ("from /data/ab/c to /data/ab/d", "from c to d"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("3/4 of runs, a/b/c, 1 / 2", "3/4 of runs, a/b/c, 1 / 2"),
        ("no file /etc", "no file /etc"),
    ],
)
def test_absolute_paths_are_not_published(text, shown):
    assert published(text) == shown


def test_an_error_whose_text_raises_has_a_name():
    class SilentError(Exception):
        def __str__(self):
            raise RuntimeError

    assert named(SilentError()) == "SilentError: (its text raised RuntimeError)"
