"""Paired studies of optimizers: specification, training, records, statistics, report.

Nothing here imports torch before a run starts, so the command line answers at once.
"""


class StudyError(Exception):
    """An expected failure, in one line: what came, what was expected, the next move."""
