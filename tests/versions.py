"""The quick tests under several Pythons, with the lowest and newest libraries that are admitted.

    make versions
    python tests/versions.py --python 3.12 --libraries lowest -- tests/encoders

Each cell has an environment of its own under .venv-versions/, made as `make` makes .venv, and a log
beside it. What follows `--` goes to pytest instead of the quick tests. Exits with 1 where a cell
fails; a Python that is missing, or for which there are no wheels, is no failure. TORCH=torch==…
names the newest torch by hand.
"""

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-versions"
PYTHONS = ("3.11", "3.12", "3.13")
LIBRARIES = ("ray", "torch", "transformers", "peft", "deepspeed")
NO_WHEEL = ("No matching distribution found", "ResolutionImpossible")
SKIPPED = ("no such Python on this machine", "no wheels")
QUICK = (
    "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "not full",
    # The lock is of one Python and one set of versions; these cells are the others.
    "--deselect", "tests/infra/test_docker.py::test_what_the_tests_run_with_is_what_is_locked",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One environment: a Python, with the lowest or the newest libraries."""

    python: str
    libraries: str

    @property
    def folder(self) -> Path:
        return FOLDER / f"py{self.python}-{self.libraries}"


@functools.cache
def admitted() -> dict[str, Requirement]:
    """What pyproject.toml admits of each of LIBRARIES."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"])
    return {item.name: item for item in requirements if item.name in LIBRARIES}


def lowest_versions() -> dict[str, str]:
    """The lower bound, or the only version, of each of LIBRARIES."""
    return {
        name: next(part.version for part in item.specifier if part.operator in (">=", "=="))
        for name, item in admitted().items()
    }


def find_python(version: str) -> str | None:
    """An interpreter on the path, or one of pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, pyenv)):
        # One of pyenv's names may stand for a version that is not chosen here.
        if candidate and subprocess.run([candidate, "-V"], capture_output=True).returncode == 0:
            return candidate
    return None


def newest_torch(python: str) -> str:
    """The requirement that `make` gets: without a GPU it asks for the CPU's build of it."""
    words = [python, "-m", "pip", "index", "versions", "torch"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    versions = re.search("Available versions: (.*)", shown)[1].split(", ")
    return f"torch=={max(admitted()['torch'].specifier.filter(versions), key=Version)}"


def install(cell: Cell, python: str) -> str:
    """Makes the environment; returns what is wrong, or nothing."""
    shutil.rmtree(cell.folder, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    env = {**os.environ}
    if cell.libraries == "lowest":
        pins = FOLDER / f"{cell.folder.name}.txt"
        pins.write_text("".join(f"{n}=={v}\n" for n, v in lowest_versions().items()))
        env["PIP_CONSTRAINT"] = str(pins)
        torch = f"torch=={lowest_versions()['torch']}"
    else:
        torch = os.environ.get("TORCH") or newest_torch(python)
    venv = cell.folder.relative_to(ROOT)
    log = FOLDER / f"{cell.folder.name}.install.log"
    with log.open("w") as output:
        made = subprocess.run(
            ["make", f"VENV={venv}", f"PYTHON={python}", f"TORCH={torch}", f"{venv}/dev"],
            cwd=ROOT, env=env, stdout=output, stderr=output,
        )  # fmt: skip
    if made.returncode == 0:
        return ""
    text = log.read_text()
    return SKIPPED[1] if any(words in text for words in NO_WHEEL) else f"cannot install: {log}"


def installed(cell: Cell) -> str:
    code = (
        "from importlib.metadata import version as v;"
        f"print(', '.join(f'{{n}} {{v(n)}}' for n in {LIBRARIES}))"
    )
    words = [cell.folder / "bin" / "python", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def run_tests(cell: Cell, arguments: list[str]) -> tuple[bool, str]:
    """Whether they passed, and pytest's last line."""
    log = FOLDER / f"{cell.folder.name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [cell.folder / "bin" / "python", "-m", "pytest", *(arguments or QUICK)],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=output, stderr=output,
        )  # fmt: skip
    lines = log.read_text().strip().splitlines()
    return done.returncode == 0, lines[-1].strip("= ") if lines else "no output"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, choices=PYTHONS)
    both = ("lowest", "newest")
    parser.add_argument("--libraries", nargs="+", default=both, choices=both)
    parser.add_argument("pytest", nargs="*", help="after --: arguments for pytest")
    return parser.parse_args()


def main() -> int:
    asked = parse()
    rows, failed = [], False
    for cell in (Cell(python, which) for python in asked.python for which in asked.libraries):
        began = time.monotonic()
        python, versions = find_python(cell.python), ""
        result = install(cell, python) if python else SKIPPED[0]
        passed = result in SKIPPED
        if not result:
            versions = installed(cell)
            passed, result = run_tests(cell, asked.pytest)
        failed |= not passed
        minutes = f"{(time.monotonic() - began) / 60:.0f} min"
        rows.append((cell.python, cell.libraries, versions, minutes, result))
        print(*rows[-1], sep="  ", flush=True)
    print("\n| Python | libraries | versions | time | result |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print("|", " | ".join(row), "|")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
