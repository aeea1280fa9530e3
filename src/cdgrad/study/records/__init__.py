"""What is known of each run: the record, the file that holds all of a study, and other formats."""

from cdgrad.study.records.csv_file import csv_text
from cdgrad.study.records.environment import environment
from cdgrad.study.records.parquet import from_parquet, to_parquet
from cdgrad.study.records.run import Key, Run, Status, order
from cdgrad.study.records.store import FILE, LOCK, Store

__all__ = [
    "FILE",
    "LOCK",
    "Key",
    "Run",
    "Status",
    "Store",
    "csv_text",
    "environment",
    "from_parquet",
    "order",
    "to_parquet",
]
