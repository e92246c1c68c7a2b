"""A run's journal on disk and in a bucket, and that it costs no run."""

import json
import logging
import os

import pytest

from stillroom.errors import UserError
from stillroom.observability import run_journal as journals
from stillroom.observability.log_context import told
from stillroom.observability.run_journal import find, journal, note, read, runs
from stillroom.storage.artifacts import Store

log = logging.getLogger("stillroom.tried")


@pytest.fixture(autouse=True)
def heard():
    ours = logging.getLogger("stillroom")
    level = ours.level
    ours.setLevel(logging.INFO)
    yield
    ours.setLevel(level)


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "runs" if request.param == "folder" else f"s3://{bucket}/{tmp_path.name}"
    return Store(str(place))


def happened(store, run):
    return [(event["event"], event.get("ref")) for event in read(store, run)[0]]


def lines(store, run):
    with store.fs.open_input_stream(f"{store.base}/.runs/{run}/log.jsonl") as file:
        return [json.loads(line) for line in file.read().splitlines()]


def test_all_that_happens_is_there_in_order_and_so_is_the_log(store):
    with journal(store, {"recipe": "small", "job": "raysubmit_1"}) as kept:
        kept.reused("corpus/small-1")
        with kept.stage("teacher/small-2") as ends:
            log.info("a line")
            note(store, "training begins", ref="teacher/small-2", after=0, workers=1)
            assert told() == {"run": kept.run, "stage": "teacher/small-2"}
            ends["outcome"] = "made"
        kept.reused("vectors/small-3")
    assert told() == {}
    assert happened(store, kept.run) == [
        ("run begins", None), ("reused", "corpus/small-1"), ("stage begins", "teacher/small-2"),
        ("training begins", "teacher/small-2"), ("stage ends", "teacher/small-2"),
        ("reused", "vectors/small-3"), ("run ends", None),
    ]  # fmt: skip
    events, alive = read(store, kept.run)
    assert events[0]["began"] <= events[0]["at"] <= alive
    assert events[4]["outcome"] == "made" and 0 < events[4]["memory_gib"] < 24
    [line] = [one for one in lines(store, kept.run) if one["message"] == "a line"]
    assert (line["run"], line["stage"]) == (kept.run, "teacher/small-2")
    assert runs(store) == [kept.run]
    for name in (kept.run, "raysubmit_1", "teacher/small-2"):
        assert find(store, name) == kept.run
    log.info("another")
    assert len(lines(store, kept.run)) == 2, "what is said later is none of its"


def test_a_run_that_fails_says_at_what_and_why(store):
    with pytest.raises(ValueError), journal(store, {}) as kept, kept.stage("teacher/small-2"):
        raise ValueError("two\nlines")
    events, _ = read(store, kept.run)
    assert [event["event"] for event in events[1:]] == ["stage begins", "stage fails", "run ends"]
    assert events[2]["error"] == events[3]["error"] == "ValueError: two lines"
    assert events[3]["outcome"] == "failed"


def test_a_run_that_is_interrupted_was_stopped(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), journal(store, {}) as kept, kept.stage("teacher/a-1"):
        raise KeyboardInterrupt
    assert read(store, kept.run)[0][-1]["outcome"] == "stopped"


def test_a_run_that_makes_nothing_leaves_nothing(tmp_path):
    with journal(Store(str(tmp_path)), {}) as kept:
        kept.reused("corpus/small-1")
    assert not list(tmp_path.iterdir()) and runs(kept.store) == []


def test_what_cannot_be_written_costs_a_line_and_no_run(tmp_path, caplog):
    (tmp_path / ".runs").write_text("in the way")
    with journal(Store(str(tmp_path)), {}) as kept, kept.stage("teacher/small-2") as ends:
        ends["outcome"] = "made"
    assert "the run's journal lacks" in caplog.text


def test_outside_of_a_run_nothing_is_noted(tmp_path):
    note(Store(str(tmp_path)), "training begins", after=0)
    assert not list(tmp_path.iterdir())


def test_a_name_that_no_run_has_is_answered_with_those_there_are(tmp_path):
    store = Store(str(tmp_path))
    with journal(store, {}) as kept, kept.stage("teacher/small-2") as ends:
        ends["outcome"] = "made"
    with pytest.raises(UserError, match=f"nobody.*the newest are {kept.run}"):
        find(store, "nobody")


def test_what_lives_tells_so_while_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "ALIVE_S", 0.01)
    monkeypatch.setattr(journals, "LOOK_S", 0.01)
    store = Store(str(tmp_path))
    with journal(store, {}) as kept, kept.stage("teacher/small-2") as ends:
        seen = set()
        while len(seen) < 3:  # the suite's time limit is its deadline
            seen.add(read(store, kept.run)[1])
        ends["outcome"] = "made"
    assert not [name for name in os.listdir(tmp_path / ".runs" / kept.run) if "partial" in name]
