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


@pytest.mark.parametrize("factor", [2, 10, 50])
def test_however_many_come_those_let_in_wait_no_longer_than_the_target_and_one_service(factor):
    target, service = 2.0, 0.1  # seconds; one request at a time
    meter, ends, waits, refused = Meter(), [], [], 0
    meter.begin(1, now=-1.0)  # from here on, a pace is known
    meter.end(1, now=-1.0 + service, done=True)
    free = 0.0  # when the encoder has done all it was given
    for number in range(3000):
        now = number * service / factor
        while ends and ends[0] <= now:
            meter.end(1, ends.pop(0), done=True)
        if meter.wait_s(now) > target:
            refused += 1
            continue
        meter.begin(1, now)
        waits.append(max(0.0, free - now))
        free = max(free, now) + service
        ends.append(free)
    assert target - service <= max(waits) + 1e-6
    assert max(waits) <= target + 2 * service
    assert refused / 3000 == pytest.approx(1 - 1 / factor, abs=0.1)
