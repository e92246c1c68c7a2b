"""Benchmarks and other scripts start without pytest's own search path."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").glob("*/*.py"))
    if "ArgumentParser(" in path.read_text()
]


@pytest.mark.full
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_it_is_used(script):
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
