"""The recipes that are shipped."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
