"""The fixtures of every test of the study tool."""

from tiny_study import (  # noqa: F401  found by pytest by name
    _one_thread,
    finished,
    make_run,
    no_figures,
    no_workers,
    tiny,
    tiny_text,
)
