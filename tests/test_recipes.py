from pathlib import Path

import pytest

from stillroom.config import read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "jobs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_that_we_ship_is_valid(file, monkeypatch):
    monkeypatch.setenv("TINY_TEACHER", "/somewhere")
    monkeypatch.setenv("TINY_STUDENT", "/somewhere")
    assert read_recipe(file).name == file.stem
