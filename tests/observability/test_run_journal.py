"""A run's journal on disk and in a bucket; its failures never stop the run."""

import json
import logging
import os

import pytest
from ray.exceptions import RayTaskError

from stillroom.errors import UserError
from stillroom.observability import run_journal as journals
from stillroom.observability.log_context import current_fields
from stillroom.observability.run_journal import (
    find_run,
    list_runs,
    open_journal,
    read_events,
    record_event,
)
from stillroom.storage.artifacts import Store

log = logging.getLogger("stillroom.tried")


@pytest.fixture(autouse=True)
def info_level():
    package = logging.getLogger("stillroom")
    level = package.level
    package.setLevel(logging.INFO)
    yield
    package.setLevel(level)


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "runs" if request.param == "folder" else f"s3://{bucket}/{tmp_path.name}"
    return Store(str(root))


def event_names(store, run):
    return [(event["event"], event.get("ref")) for event in read_events(store, run)[0]]


def lines(store, run):
    with store.fs.open_input_stream(f"{store.base}/.runs/{run}/log.jsonl") as file:
        return [json.loads(line) for line in file.read().splitlines()]


def test_a_journal_has_all_events_in_order_and_the_log(store):
    with open_journal(store, {"recipe": "small", "job": "raysubmit_1"}) as journal:
        journal.reused("corpus/small-1")
        with journal.stage("teacher/small-2") as fields:
            log.info("a line")
            record_event(store, "training begins", ref="teacher/small-2", after=0, workers=1)
            assert current_fields() == {"run": journal.run, "stage": "teacher/small-2"}
            fields["outcome"] = "made"
        journal.reused("vectors/small-3")
    assert current_fields() == {}
    assert event_names(store, journal.run) == [
        ("run begins", None), ("reused", "corpus/small-1"), ("stage begins", "teacher/small-2"),
        ("training begins", "teacher/small-2"), ("stage ends", "teacher/small-2"),
        ("reused", "vectors/small-3"), ("run ends", None),
    ]  # fmt: skip
    events, alive = read_events(store, journal.run)
    assert events[0]["began"] <= events[0]["at"] <= alive
    assert events[4]["outcome"] == "made" and 0 < events[4]["memory_gib"] < 24
    [line] = [line for line in lines(store, journal.run) if line["message"] == "a line"]
    assert (line["run"], line["stage"]) == (journal.run, "teacher/small-2")
    assert list_runs(store) == [journal.run]
    for name in (journal.run, "raysubmit_1", "teacher/small-2"):
        assert find_run(store, name) == journal.run
    log.info("another")
    assert len(lines(store, journal.run)) == 2, "lines after the run do not belong to it"


OF_A_TASK = RayTaskError("task", "its\ntraceback", UserError("a file", "is broken", "Mend it"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "ValueError: two lines"),
        (OF_A_TASK.as_instanceof_cause(), "UserError: a file: is broken. Mend it."),
    ],
)
def test_a_failed_run_records_the_stage_and_the_error(store, error, line):
    with (
        pytest.raises(type(error)),
        open_journal(store, {}) as journal,
        journal.stage("teacher/small-2"),
    ):
        raise error
    events, _ = read_events(store, journal.run)
    assert [event["event"] for event in events[1:]] == ["stage begins", "stage fails", "run ends"]
    assert events[2]["error"] == events[3]["error"] == line
    assert events[3]["outcome"] == "failed"


def test_an_interrupted_run_is_recorded_as_stopped(tmp_path):
    store = Store(str(tmp_path))
    with (
        pytest.raises(KeyboardInterrupt),
        open_journal(store, {}) as journal,
        journal.stage("teacher/a-1"),
    ):
        raise KeyboardInterrupt
    assert read_events(store, journal.run)[0][-1]["outcome"] == "stopped"


def test_a_run_that_makes_nothing_leaves_no_journal(tmp_path):
    with open_journal(Store(str(tmp_path)), {}) as journal:
        journal.reused("corpus/small-1")
    assert not list(tmp_path.iterdir()) and list_runs(journal.store) == []


def test_a_journal_that_cannot_be_written_costs_a_warning_but_not_the_run(tmp_path, caplog):
    (tmp_path / ".runs").write_text("in the way")
    with (
        open_journal(Store(str(tmp_path)), {}) as journal,
        journal.stage("teacher/small-2") as fields,
    ):
        fields["outcome"] = "made"
    assert "of the run's journal" in caplog.text


def test_outside_a_run_no_event_is_recorded(tmp_path):
    record_event(Store(str(tmp_path)), "training begins", after=0)
    assert not list(tmp_path.iterdir())


def test_an_unknown_run_is_refused_with_the_newest_ones(tmp_path):
    store = Store(str(tmp_path))
    with open_journal(store, {}) as journal, journal.stage("teacher/small-2") as fields:
        fields["outcome"] = "made"
    with pytest.raises(UserError, match=f"nobody.*the newest runs are {journal.run}"):
        find_run(store, "nobody")


def test_a_running_run_writes_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(journals, "MEMORY_POLL_S", 0.01)
    store = Store(str(tmp_path))
    with open_journal(store, {}) as journal, journal.stage("teacher/small-2") as fields:
        seen = set()
        while len(seen) < 3:  # the suite's time limit is its deadline
            seen.add(read_events(store, journal.run)[1])
        fields["outcome"] = "made"
    assert not [name for name in os.listdir(tmp_path / ".runs" / journal.run) if "partial" in name]
