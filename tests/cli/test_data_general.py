"""`stillroom data general`, and what a plan says about measuring elsewhere."""

import json
from pathlib import Path

import pytest

from support.in_process_cli import run_command

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"


@pytest.fixture
def stillroom(tmp_path):
    def run(*words):
        return run_command(*words, cwd=tmp_path)

    return run


def test_gathered_texts_are_counted_and_written(stillroom, tmp_path):
    words = ("data", "general", "--source", "packages", "--words", "2_000", "--out", "out.jsonl")
    counts = json.loads(stillroom(*words, "--json").stdout)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == counts["texts"] == sum(counts["lengths"].values())
    assert {row["source"] for row in rows} == {"packages"}
    assert 2_000 <= counts["words"] < 2_300
    assert counts["identity"] in stillroom(*words).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--source", "novels"), "Use one of dictionaries, terms, manuals"),
        (("--source", "packages", "--files", "nowhere.txt"), "nowhere.txt: does not exist"),
        (("--against", "nowhere"), "holds no evaluation set"),
    ],
)
def test_what_cannot_be_gathered_is_refused(stillroom, words, expected):
    done = stillroom("data", "general", *words)
    assert done.returncode == 2 and expected in done.stderr


def test_a_plan_says_what_measuring_elsewhere_costs(stillroom):
    assert "elsewhere" not in stillroom("plan", TINY).stdout
    plan = stillroom("plan", TINY, "evaluation.made_guards={sets: 2, queries: 40, passages: 60}")
    assert "at most 2 sets of 40 queries and 60 passages" in plan.stdout
    assert "every model encodes up to 200 texts more" in plan.stdout
