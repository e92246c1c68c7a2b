import pytest

from stillroom.serving.load import MEMORY_S, Meter


def test_the_wait_is_what_is_ongoing_at_the_pace_of_what_was_done():
    meter = Meter()
    for _ in range(4):
        meter.begin(100, now=0.0)
    assert meter.wait_s(now=0.0) == 0  # no pace is known yet
    meter.end(100, now=0.5, done=True)
    assert meter.wait_s(now=0.5) == pytest.approx(300 / (100 / 0.5))


def test_idle_time_is_no_slowness():
    meter = Meter()
    meter.begin(100, now=0.0)
    meter.end(100, now=1.0, done=True)
    meter.begin(100, now=1000.0)
    assert meter.wait_s(now=1000.0) == pytest.approx(1.0)


def test_an_idle_encoder_has_no_wait_whatever_was_before():
    meter = Meter()
    meter.begin(100, now=0.0)
    meter.end(100, now=60.0, done=False)
    meter.begin(100, now=60.0)
    meter.end(100, now=90.0, done=True)
    assert meter.wait_s(now=90.0) == 0
    assert meter.ongoing == 0


def test_a_stall_is_seen_while_it_lasts_and_a_new_pace_is_learnt():
    meter = Meter()
    for now in range(10):
        meter.begin(10, float(now))
        meter.begin(10, float(now))
        meter.end(10, now + 0.5, done=True)
        meter.end(10, now + 0.5, done=True)
    meter.begin(10, 10.0)
    steady = meter.wait_s(10.0)
    assert meter.wait_s(10.0 + 3 * MEMORY_S) > 10 * steady
    meter.end(10, 10.0 + 3 * MEMORY_S, done=True)
    for step in range(1000):  # ten times as fast from here on
        now = 100 + step * 0.1
        meter.begin(40, now)
        meter.end(40, now + 0.1, done=True)
    meter.begin(40, 300.0)
    assert meter.wait_s(300.0) == pytest.approx(0.1, rel=0.05)


def test_many_at_once_count_as_the_throughput_that_they_had_together():
    meter = Meter()
    for _ in range(32):  # one forward of a second for all of them
        meter.begin(1, now=0.0)
    for _ in range(32):
        meter.end(1, now=1.0, done=True)
    for _ in range(320):
        meter.begin(1, now=1.0)
    assert meter.wait_s(now=1.0) == pytest.approx(10.0)
