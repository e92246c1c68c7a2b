"""A wheel works outside of a checkout: it contains recipes, templates and serving pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that contains the installed package in `site` and a working folder, `work`."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel"]
    subprocess.run([*wheel, ROOT], check=True)
    [built] = (folder / "wheel").glob("stillroom-*.whl")
    target = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, built], check=True
    )
    (folder / "work").mkdir()
    return folder


@pytest.fixture
def stillroom(installed):
    """Runs the installed package's command line in a process that cannot see the checkout."""

    def run(*words, timeout=120):
        # With -S the editable install's .pth file is not read, so the checkout is not on the path.
        code = (
            "import sys, stillroom.cli\n"
            f"assert stillroom.__file__.startswith({str(installed / 'site')!r})\n"
            "stillroom.cli.main()"
        )
        path = [entry for entry in sys.path if entry and Path(entry).name == "site-packages"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed / "site"), *path])}
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, *map(str, words)],
            cwd=installed / "work", env=env, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def recipe(stillroom, installed):
    path = installed / "work" / "mine.yaml"
    path.unlink(missing_ok=True)
    stillroom("init", "--from", "tiny", path.name)
    return path.name


def test_the_shipped_files_are_those_of_the_repository(installed, stillroom):
    package = installed / "site" / "stillroom"
    for copies, originals in (("_recipes", ROOT / "jobs" / "recipes"), ("_serve", ROOT / "serve")):
        names = [path.name for path in originals.glob("*.yaml")]
        assert names
        for name in names:
            assert (package / copies / name).read_text() == (originals / name).read_text()
    stillroom("init", "--from", "serve/quickstart", "serving.yaml")
    assert (installed / "work" / "serving.yaml").is_file()


def test_an_installed_recipe_is_checked_planned_and_could_be_submitted(stillroom, recipe):
    steps = json.loads(stillroom("plan", recipe, "--json"))["steps"]
    assert [step["stage"] for step in steps] == [
        "corpus", "teacher", "vectors", "negatives", "student", "report", "release",
    ]  # fmt: skip
    assert "recipe: mine: 7 steps to make" in stillroom("check", recipe)
    command = json.loads(stillroom("submit", recipe, "root=/shared/runs", "--dry-run", "--json"))[
        "command"
    ]
    assert f"{os.sep}site{os.sep}stillroom" in command  # the installed package


@pytest.mark.full
def test_an_installed_recipe_runs_to_a_release(stillroom, recipe):
    done = json.loads(stillroom("run", recipe, "--json", timeout=500))
    assert done["release"] and Path(done["report"]).name == "report.html"
