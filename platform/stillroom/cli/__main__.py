"""TODO docstring: cli/__main__.py."""

from stillroom.cli import main

if __name__ == "__main__":  # processes that it spawns import this too
    main()
