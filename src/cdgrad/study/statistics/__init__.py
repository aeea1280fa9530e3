"""What a study found: its records by cell, arm and seed, and the statistics of paired differences."""

from cdgrad.study.statistics.results import Compared, Results, read

__all__ = ["Compared", "Results", "read"]
