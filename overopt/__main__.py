"""``python -m overopt``: the command line, for environments without the script."""

import sys

from overopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
