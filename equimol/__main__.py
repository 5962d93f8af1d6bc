"""`python -m equimol` is the command `equimol`."""

import sys

from equimol.cli import main

if __name__ == "__main__":
    sys.exit(main())
