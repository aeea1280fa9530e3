"""Which runs a study has, and which of them follow from those that are recorded."""

from cdgrad.study.plan.job import Job
from cdgrad.study.plan.plan import Plan
from cdgrad.study.plan.search import Choice, Search

__all__ = ["Choice", "Job", "Plan", "Search"]
