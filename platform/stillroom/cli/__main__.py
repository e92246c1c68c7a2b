"""Runs the command line: `python -m stillroom.cli`."""

from stillroom.cli import main

if __name__ == "__main__":  # spawned processes import this module too
    main()
