"""Run the command line as `python -m tuplet`."""

from tuplet.cli.main import main

main()
