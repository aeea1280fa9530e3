"""The benchmark of ``cdgrad bench``: networks as tables of shapes, what is timed on them, and the record.

`shapes` needs no torch, so that ``cdgrad bench --help`` is quick.
"""
