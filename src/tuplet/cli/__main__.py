"""Run the command line as `python -m tuplet.cli`."""

from tuplet.cli.main import main

main()
