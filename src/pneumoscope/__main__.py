"""`python -m pneumoscope` is the `pneumoscope` command."""

import sys

from pneumoscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
