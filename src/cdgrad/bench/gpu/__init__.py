"""The benchmark of ``cdgrad bench --device cuda``: sections of items, measured until the time is over.

A rehearsal runs every item on the CPU, with tiny tensors and Triton's interpreter, and measures nothing.
"""
