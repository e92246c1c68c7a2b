"""Timelines of runs that ended well, ended badly, or did not end."""

from xml.etree import ElementTree

import pytest

from stillroom.observability.timeline import (
    build_timeline,
    format_clock,
    format_duration,
    render_svg,
    table_rows,
    text_bar,
)

NOON = 1_800_000_000.0


def event(second, name, /, **fields):
    return {"at": NOON + second, "event": name, **fields}


STARTED = [
    event(2, "run begins", began=NOON, recipe="small", host="h", job=None),
    event(2, "reused", ref="corpus/small-1"),
    event(2, "stage begins", ref="teacher/small-2"),
    event(10, "training begins", ref="teacher/small-2", after=0, workers=4),
]
FINISHED = [
    *STARTED,
    event(50, "training begins", ref="teacher/small-2", after=30, workers=3),
    event(82, "stage ends", ref="teacher/small-2", outcome="made", memory_gib=12.345),
    event(82, "stage begins", ref="vectors/small-3"),
    event(98, "stage ends", ref="vectors/small-3", outcome="made"),
    event(100, "run ends", outcome="done", error=None),
]


def test_every_second_of_a_finished_run_is_in_a_stage_or_between_stages():
    run = build_timeline("id", FINISHED, NOON + 95, NOON + 9999)
    assert (run.outcome, run.seconds, run.seconds_between_stages()) == ("done", 100, 4)
    corpus, teacher, vectors = run.spans
    assert (corpus.outcome, corpus.seconds, teacher.seconds, vectors.seconds) == (
        "reused",
        0,
        80,
        16,
    )
    assert (teacher.restarts, teacher.resumed_after) == (1, None)
    stages = run.as_json()["stages"]
    assert [stage["share"] for stage in stages] == [0, 0.8, 0.16]
    assert [stage["workers"] for stage in stages] == [None, 3, None]
    assert (stages[0]["began"], stages[1]["began"]) == (None, "2027-01-15T08:00:02.000+00:00")


def test_a_run_without_heartbeats_counts_as_killed_at_its_last_one():
    killed = build_timeline("id", STARTED, NOON + 60, NOON + 1000)
    assert (killed.outcome, killed.seconds) == ("killed", 60)
    assert (killed.spans[1].outcome, killed.spans[1].seconds) == ("killed", 58)
    silent = build_timeline("id", STARTED, None, NOON + 1000)
    assert (silent.outcome, silent.seconds) == ("killed", 10), "there was no heartbeat"


def test_a_run_with_a_recent_heartbeat_is_running():
    now = build_timeline("id", STARTED, NOON + 60, NOON + 75)
    assert (now.outcome, now.seconds, now.spans[1].outcome) == ("running", 75, "running")


def test_a_failed_stage_shows_its_error():
    failed = [
        *STARTED,
        event(20, "stage fails", ref="teacher/small-2", error="ValueError: no <good>"),
        event(20, "run ends", outcome="failed", error="ValueError: no <good>"),
    ]
    run = build_timeline("id", failed, None, NOON + 21)
    assert (run.outcome, run.spans[1].outcome) == ("failed", "failed")
    assert run.error == run.spans[1].error == "ValueError: no <good>"
    [bar] = ElementTree.fromstring(render_svg(run)).findall(".//*[@class='failed']")
    assert float(bar.get("width")) > 100
    assert "ValueError: no &lt;good&gt;" in render_svg(run)


def test_the_table_has_a_row_per_stage_with_a_bar_at_its_time():
    run = build_timeline("id", FINISHED, None, NOON + 101)
    header, corpus, teacher, vectors = table_rows(run, width=50)
    assert corpus == ["corpus/small-1", "", "", "", "reused", "", ""]
    assert teacher[:4] == ["teacher/small-2", "08:00:02", "1 min 20 s", "80%"]
    assert teacher[4:6] == ["made; restarted once, after step 30", "12.3 GiB"]
    assert teacher[6] == " " + 40 * "█" and vectors[6] == 41 * " " + 8 * "█"
    assert len(header) == len(vectors)
    assert all(text_bar(span, run, 3) for span in run.spans[1:]), "even the shortest"


def test_the_svg_has_a_bar_per_stage_that_ran_and_a_mark_for_a_restart():
    svg = ElementTree.fromstring(render_svg(build_timeline("id", FINISHED, None, NOON + 101)))
    space = {"s": "http://www.w3.org/2000/svg"}
    teacher, vectors = svg.findall(".//s:rect[@class='made']", space)
    assert float(teacher.get("width")) == pytest.approx(5 * float(vectors.get("width")), abs=0.5)
    assert float(teacher.get("x")) + float(teacher.get("width")) == float(vectors.get("x"))
    assert len(svg.findall(".//s:rect[@width='2']", space)) == 1


def test_durations_and_times_are_formatted_for_people():
    assert [format_duration(seconds) for seconds in (0.44, 12, 59.6, 185, 3599.9, 7620)] == [
        "0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min",
    ]  # fmt: skip
    assert format_clock(NOON) == "08:00:00"
