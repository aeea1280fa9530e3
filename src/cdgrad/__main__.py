"""``python -m cdgrad`` is the ``cdgrad`` command."""

import os
import sys

# -m puts the working directory first, where a user's file could be mistaken for a module of some package.
if __name__ == "__main__" and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from cdgrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
