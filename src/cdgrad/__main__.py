"""``python -m cdgrad`` is the ``cdgrad`` command."""

import sys

from cdgrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
