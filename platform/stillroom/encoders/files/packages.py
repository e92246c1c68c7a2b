"""Weights inside installed Python packages, named `package:MODULE/relative/path`."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from stillroom.errors import UserError

PACKAGE = "package:"


def package_path(name: str) -> Path:
    """The file or folder of a name, located without importing the package.

    Raises:
        UserError: when the package is not installed, or holds no such file.
    """
    module, path = _module_and_path(name)
    if path.startswith("/") or ".." in path.split("/"):
        raise UserError(
            name, "leads outside of the package", "Name a file or folder of the package itself"
        )
    distribution, _ = distribution_and_version(name)
    located: Path | None = None
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.origin is not None:
        if spec.submodule_search_locations:  # a package: a module alone lies among all others
            located = Path(spec.origin).parent / path
    else:  # not importable, but its files are listed
        for file in importlib.metadata.files(distribution) or []:
            if file.as_posix().partition("/")[2] == path:
                located = Path(str(file.locate()))
    if located is None or not located.exists():
        raise UserError(
            name, f"the package {distribution} holds no {path}", "Correct the path after the module"
        )
    return located


def distribution_and_version(name: str) -> tuple[str, str]:
    """The distribution that a name's module belongs to; the module may be named after either.

    Raises:
        UserError: when it is not installed.
    """
    module, _ = _module_and_path(name)
    distributions = importlib.metadata.packages_distributions().get(module, [module])
    try:
        return distributions[0], importlib.metadata.version(distributions[0])
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:  # or an empty name
        distribution = module.replace("_", "-")
        raise UserError(
            name, f"the package {module} is not installed", f"Run: pip install {distribution}"
        ) from error


def zip_parts(name: str) -> Iterator[Path]:
    """The parts .001, .002, … of a zip, each from the package of its number.

    Raises:
        UserError: when the first part is missing.
    """
    number = 1
    while True:
        digits = f"{number:03d}"
        part = name.replace("-001/", f"-{digits}/").removesuffix("001") + digits
        try:
            yield package_path(part)
        except UserError:
            if number == 1:
                raise
            return
        number += 1


def _module_and_path(name: str) -> tuple[str, str]:
    module, _, path = name.removeprefix(PACKAGE).partition("/")
    return module, path
