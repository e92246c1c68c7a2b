"""What is said of runs that ended well, ended badly, or did not end."""

from xml.etree import ElementTree

import pytest

from stillroom.observability.timeline import bar, clock, lasting, svg, table, timeline

NOON = 1_800_000_000.0


def event(second, what, /, **fields):
    return {"at": NOON + second, "event": what, **fields}


BEGUN = [
    event(2, "run begins", began=NOON, recipe="small", host="h", job=None),
    event(2, "reused", ref="corpus/small-1"),
    event(2, "stage begins", ref="teacher/small-2"),
    event(10, "training begins", ref="teacher/small-2", after=0, workers=4),
]
MADE = [
    *BEGUN,
    event(50, "training begins", ref="teacher/small-2", after=30, workers=3),
    event(82, "stage ends", ref="teacher/small-2", outcome="made", memory_gib=12.345),
    event(82, "stage begins", ref="vectors/small-3"),
    event(98, "stage ends", ref="vectors/small-3", outcome="made"),
    event(100, "run ends", outcome="done", error=None),
]


def test_a_run_that_ended_has_every_second_in_a_stage_or_between_them():
    told = timeline("id", MADE, NOON + 95, NOON + 9999)
    assert (told.outcome, told.seconds, told.between()) == ("done", 100, 4)
    corpus, teacher, vectors = told.spans
    assert (corpus.outcome, corpus.seconds, teacher.seconds, vectors.seconds) == (
        "reused",
        0,
        80,
        16,
    )
    assert (teacher.restarts, teacher.resumed_after) == (1, None)
    stages = told.as_json()["stages"]
    assert [one["share"] for one in stages] == [0, 0.8, 0.16]
    assert [one["workers"] for one in stages] == [None, 3, None]
    assert (stages[0]["began"], stages[1]["began"]) == (None, "2027-01-15T08:00:02.000+00:00")


def test_a_run_that_is_silent_was_killed_when_it_was_last_heard_of():
    lost = timeline("id", BEGUN, NOON + 60, NOON + 1000)
    assert (lost.outcome, lost.seconds) == ("killed", 60)
    assert (lost.spans[1].outcome, lost.spans[1].seconds) == ("killed", 58)
    alone = timeline("id", BEGUN, None, NOON + 1000)
    assert (alone.outcome, alone.seconds) == ("killed", 10), "there was no sign of life"


def test_a_run_that_was_heard_of_a_moment_ago_runs():
    now = timeline("id", BEGUN, NOON + 60, NOON + 75)
    assert (now.outcome, now.seconds, now.spans[1].outcome) == ("running", 75, "running")


def test_a_stage_that_failed_says_why():
    failed = [
        *BEGUN,
        event(20, "stage fails", ref="teacher/small-2", error="ValueError: no <good>"),
        event(20, "run ends", outcome="failed", error="ValueError: no <good>"),
    ]
    told = timeline("id", failed, None, NOON + 21)
    assert (told.outcome, told.spans[1].outcome) == ("failed", "failed")
    assert told.error == told.spans[1].error == "ValueError: no <good>"
    [found] = ElementTree.fromstring(svg(told)).findall(".//*[@class='failed']")
    assert float(found.get("width")) > 100
    assert "ValueError: no &lt;good&gt;" in svg(told)


def test_the_table_has_a_row_a_stage_and_bars_where_its_time_lies():
    told = timeline("id", MADE, None, NOON + 101)
    header, corpus, teacher, vectors = table(told, width=50)
    assert corpus == ["corpus/small-1", "", "", "", "reused", "", ""]
    assert teacher[:4] == ["teacher/small-2", "08:00:02", "1 min 20 s", "80%"]
    assert teacher[4:6] == ["made; restarted once, after step 30", "12.3 GiB"]
    assert teacher[6] == " " + 40 * "█" and vectors[6] == 41 * " " + 8 * "█"
    assert len(header) == len(vectors)
    assert all(bar(span, told, 3) for span in told.spans[1:]), "as short as it may be"


def test_the_drawing_has_a_bar_a_stage_that_worked_and_a_mark_for_a_restart():
    drawn = ElementTree.fromstring(svg(timeline("id", MADE, None, NOON + 101)))
    space = {"s": "http://www.w3.org/2000/svg"}
    teacher, vectors = drawn.findall(".//s:rect[@class='made']", space)
    assert float(teacher.get("width")) == pytest.approx(5 * float(vectors.get("width")), abs=0.5)
    assert float(teacher.get("x")) + float(teacher.get("width")) == float(vectors.get("x"))
    assert len(drawn.findall(".//s:rect[@width='2']", space)) == 1


def test_times_read_well():
    assert [lasting(one) for one in (0.44, 12, 59.6, 185, 3599.9, 7620)] == [
        "0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min",
    ]  # fmt: skip
    assert clock(NOON) == "08:00:00"
