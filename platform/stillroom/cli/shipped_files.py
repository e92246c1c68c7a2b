"""Recipes and serving configurations shipped with the package.

The files are in `jobs/recipes` and `serve` of the repository. A wheel holds copies
(pyproject.toml); an editable install reads them from the checkout.
"""

from pathlib import Path

import stillroom
from stillroom.errors import UserError

PACKAGE = Path(stillroom.__file__).parent
CHECKOUT = PACKAGE.parents[1]
SERVE = "serve/"  # before the name of a serving configuration


def shipped_files() -> dict[str, Path]:
    """Recipes by name, then serving configurations by `serve/` and name."""
    installed = (PACKAGE / "_recipes").is_dir()
    recipes = PACKAGE / "_recipes" if installed else CHECKOUT / "jobs" / "recipes"
    serving = PACKAGE / "_serve" if installed else CHECKOUT / "serve"
    return {
        **{path.stem: path for path in sorted(recipes.glob("*.yaml"))},
        **{f"{SERVE}{path.stem}": path for path in sorted(serving.glob("*.yaml"))},
    }


def shipped_text(name: str) -> str:
    """The text of a shipped file.

    Raises:
        UserError: when there is no file of that name; it lists the names.
    """
    files = shipped_files()
    if name not in files:
        raise UserError(
            f"--from {name}", "no such recipe is shipped", f"Use one of {', '.join(files)}"
        )
    return files[name].read_text(encoding="utf-8")
