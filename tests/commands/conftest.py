"""The fixtures that tests of commands share with those of the study tool."""

from tiny_study import make_run, no_figures, no_workers, tiny, tiny_text  # noqa: F401  found by pytest by name
