import pytest

from stillroom.serving.routing.load import MEMORY_S, Meter


def test_the_wait_is_what_is_ongoing_at_the_pace_of_what_was_done():
    meter = Meter(full=1)
    first, *_ = [meter.begin(100, now=0.0) for _ in range(4)]
    assert meter.wait_s(now=0.0) == 0  # no pace is known yet
    meter.end(first, now=0.5, done=True)
    assert meter.wait_s(now=0.5) == pytest.approx(300 / (100 / 0.5))


def test_idle_time_is_no_slowness():
    meter = Meter(full=1)
    meter.end(meter.begin(100, now=0.0), now=1.0, done=True)
    meter.begin(100, now=1000.0)
    assert meter.wait_s(now=1000.0) == pytest.approx(1.0)


def test_an_idle_encoder_has_no_wait_whatever_was_before():
    meter = Meter(full=1)
    meter.end(meter.begin(100, now=0.0), now=60.0, done=False)
    meter.end(meter.begin(100, now=60.0), now=90.0, done=True)
    assert meter.wait_s(now=90.0) == 0
    assert meter.ongoing == 0


def test_a_stall_is_seen_while_it_lasts_and_a_new_pace_is_learnt():
    meter = Meter(full=1)
    for now in range(10):
        for one in [meter.begin(10, float(now)) for _ in range(2)]:
            meter.end(one, now + 0.5, done=True)
    stalled = meter.begin(10, 10.0)
    steady = meter.wait_s(10.0)
    assert meter.wait_s(10.0 + 3 * MEMORY_S) > 10 * steady
    meter.end(stalled, 10.0 + 3 * MEMORY_S, done=True)
    for step in range(1000):  # ten times as fast from here on
        now = 100 + step * 0.1
        meter.end(meter.begin(40, now), now + 0.1, done=True)
    meter.begin(40, 300.0)
    assert meter.wait_s(300.0) == pytest.approx(0.1, rel=0.05)


def test_many_at_once_count_as_the_throughput_that_they_had_together():
    meter = Meter(full=1)
    for one in [meter.begin(1, now=0.0) for _ in range(32)]:  # one forward of a second for all
        meter.end(one, now=1.0, done=True)
    for _ in range(320):
        meter.begin(1, now=1.0)
    assert meter.wait_s(now=1.0) == pytest.approx(10.0)


def asked_alone(meter, times, *, cost, seconds):
    for now in range(times):
        meter.end(meter.begin(cost, float(now)), now + seconds, done=True)


def test_a_burst_is_not_judged_by_the_pace_of_lone_queries():
    meter = Meter(full=4000)
    asked_alone(meter, 50, cost=20, seconds=0.1)  # 200 a second, as nobody asked for more
    for _ in range(100):
        meter.begin(100, now=100.0)
    assert meter.wait_s(now=100.0) == pytest.approx(0.1 * 10_000 / 4000)


def test_a_burst_s_own_pace_is_learned_from_the_first_that_is_done():
    meter = Meter(full=4000)
    asked_alone(meter, 50, cost=20, seconds=0.1)
    burst = [meter.begin(100, now=100.0) for _ in range(100)]
    untold = (4000 - 100) / 2  # of a forward, on the average
    for one in burst[:10]:
        meter.end(one, now=101.0, done=True)
    assert meter.wait_s(now=101.0) == pytest.approx(9000 / (1000 + untold))
    for one in burst[10:40]:
        meter.end(one, now=101.0, done=True)
    assert meter.wait_s(now=101.0) == pytest.approx(6000 / (4000 + untold))
    for one in burst[40:90]:
        meter.end(one, now=109.0, done=True)
    asked_alone(meter, 50, cost=20, seconds=0.1)  # which says nothing new of bursts
    for _ in range(100):
        meter.begin(100, now=200.0)
    assert meter.wait_s(now=200.0) > 5


def test_what_fills_no_forward_takes_what_such_requests_took_however_few_there_are():
    meter = Meter(full=4000)
    for one in [meter.begin(100, now=0.0) for _ in range(3)]:
        meter.end(one, now=0.5, done=True)
    meter.begin(10, now=50.0)
    assert meter.wait_s(now=50.0) == pytest.approx(0.5)


def test_the_first_answer_of_many_does_not_make_the_others_seem_slow():
    meter = Meter(full=4000)
    first, second, *_ = [meter.begin(20, now=0.0) for _ in range(32)]
    meter.end(first, now=0.5, done=True)
    assert meter.wait_s(now=0.5) == pytest.approx(0.5)
    meter.end(second, now=0.6, done=True)
    assert meter.wait_s(now=0.6) == pytest.approx(0.6, rel=0.1)


def test_the_first_answer_of_a_forward_does_not_make_the_forward_seem_slow():
    meter = Meter(full=4000)
    first, *_ = [meter.begin(100, now=0.0) for _ in range(60)]
    meter.end(first, now=0.5, done=True)
    assert meter.wait_s(now=0.5) < 2  # 1,900 of the others were done at once with it


def test_what_waits_behind_no_burst_any_more_is_not_judged_by_it():
    meter = Meter(full=4000)
    asked_alone(meter, 50, cost=20, seconds=0.1)
    burst = [meter.begin(100, now=100.0) for _ in range(100)]
    for place, one in enumerate(burst):
        meter.end(one, now=100.0 + (place + 1) / 10, done=True)
    meter.begin(20, now=110.0)
    assert meter.wait_s(now=110.0) < 4  # the last of them waited for ten seconds


def test_requests_that_are_not_done_are_seen_to_take_long():
    meter = Meter(full=4000)
    asked_alone(meter, 50, cost=20, seconds=0.1)
    for _ in range(3):
        meter.begin(20, now=100.0)
    assert meter.wait_s(now=130.0) == pytest.approx(30.0)


@pytest.mark.parametrize("factor", [2, 10, 50])
def test_however_many_come_those_let_in_wait_no_longer_than_the_target_and_one_service(factor):
    target, service = 2.0, 0.1  # seconds; one request at a time
    meter, ends, waits, refused = Meter(full=1), [], [], 0
    meter.end(meter.begin(1, now=-1.0), now=-1.0 + service, done=True)  # a pace is known
    free = 0.0  # when the encoder has done all it was given
    for number in range(3000):
        now = number * service / factor
        while ends and ends[0][0] <= now:
            end, one = ends.pop(0)
            meter.end(one, end, done=True)
        if meter.wait_s(now) > target:
            refused += 1
            continue
        begun = meter.begin(1, now)
        waits.append(max(0.0, free - now))
        free = max(free, now) + service
        ends.append((free, begun))
    assert target - service <= max(waits) + 1e-6
    assert max(waits) <= target + 2 * service
    assert refused / 3000 == pytest.approx(1 - 1 / factor, abs=0.1)


def test_one_that_hangs_does_not_make_the_others_seem_slow():
    meter = Meter(full=4000)
    meter.begin(20, now=0.0)
    asked_alone(meter, 50, cost=20, seconds=0.1)
    meter.begin(20, now=50.0)
    assert meter.wait_s(now=50.0) < 1.5
