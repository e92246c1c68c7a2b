"""Golden values: plain text under `tests/goldens/`, one value a line, reviewed as a diff.

`pytest --update-goldens` rewrites the files of the tests that it runs.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "goldens"

UPDATE = "--update-goldens"


def pytest_addoption(parser):
    parser.addoption(UPDATE, action="store_true", help="rewrite tests/goldens with new values")


@pytest.fixture
def golden(request):
    """`golden("losses/NAME.txt").check(values, rtol=…)`."""

    def named(name: str) -> Golden:
        return Golden(FOLDER / name, update=request.config.getoption(UPDATE))

    return named


class Golden:
    """One file of golden values: lines of `STEP VALUE`, steps from 1; `#` starts a comment."""

    def __init__(self, path: Path, *, update: bool):
        self.path, self.update = path, update

    def check(self, values: Sequence[float], *, rtol: float) -> None:
        """Fails when a value is off by more than rtol of its golden one; prints the largest
        difference in any case."""
        if self.update:
            self._write(values)
        expected = self._read()
        assert len(values) == len(expected), f"{self.path}: {len(expected)} values, not these"
        assert all(math.isfinite(value) for value in values), values
        differences = [abs(v - e) / abs(e) for v, e in zip(values, expected, strict=True)]
        step = max(range(len(values)), key=differences.__getitem__)
        report = (
            f"{self.path.name}: largest relative difference {differences[step]:.1e} at step "
            f"{step + 1}, {values[step]!r} for {expected[step]!r}"
        )
        print(report)
        assert differences[step] <= rtol, (
            f"{report}; more than {rtol}. If the change is intended, run `pytest {UPDATE}` and "
            "explain the difference where you propose it"
        )

    def _write(self, values: Sequence[float]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{step} {value:.8g}\n" for step, value in enumerate(values, start=1)]
        self.path.write_text("# step value\n" + "".join(lines), encoding="utf-8")

    def _read(self) -> list[float]:
        if not self.path.is_file():
            pytest.fail(f"{self.path} does not exist: write it with `pytest {UPDATE}`")
        lines = self.path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line and not line.startswith("#")]
        assert [int(step) for step, _ in rows] == list(range(1, len(rows) + 1)), self.path
        return [float(value) for _, value in rows]
