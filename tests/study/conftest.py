"""The fixtures of every test of the study tool."""

from tiny_study import _one_thread, finished, make_run, tiny, tiny_text  # noqa: F401  found by pytest by name
