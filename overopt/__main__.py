"""``python -m overopt``: the command line, for environments without the script."""

from overopt.cli import main

main()
