"""The commands of ``cdgrad``, one file each: `HELP`, `DESCRIPTION`, `add_arguments(parser)`, `run(options)`.

`cdgrad.cli` imports all of them to print ``--help``, so they import torch and the extras in their functions.
"""
