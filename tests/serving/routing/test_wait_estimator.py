import pytest

from stillroom.serving.routing.wait_estimator import MEMORY_S, WaitEstimator


def start_many(estimator, count, *, cost, now):
    return [estimator.start(cost, now) for _ in range(count)]


def finish_all(estimator, requests, *, now):
    for request in requests:
        estimator.finish(request, now, completed=True)


def run_one_at_a_time(estimator, count, *, cost, seconds):
    """One request at the start of each second, done before the next one starts."""
    for now in range(count):
        finish_all(estimator, [estimator.start(cost, float(now))], now=now + seconds)


def test_the_wait_is_the_ongoing_cost_at_the_measured_throughput():
    estimator = WaitEstimator(full_batch_cost=1)
    first, *_ = start_many(estimator, 4, cost=100, now=0.0)
    assert estimator.wait_s(now=0.0) == 0  # nothing is measured yet
    finish_all(estimator, [first], now=0.5)
    assert estimator.wait_s(now=0.5) == pytest.approx(300 / (100 / 0.5))


def test_idle_time_does_not_count_as_slowness():
    estimator = WaitEstimator(full_batch_cost=1)
    finish_all(estimator, [estimator.start(100, now=0.0)], now=1.0)
    estimator.start(100, now=1000.0)
    assert estimator.wait_s(now=1000.0) == pytest.approx(1.0)


def test_an_idle_encoder_has_no_wait_whatever_happened_before():
    estimator = WaitEstimator(full_batch_cost=1)
    estimator.finish(estimator.start(100, now=0.0), now=60.0, completed=False)
    estimator.finish(estimator.start(100, now=60.0), now=90.0, completed=True)
    assert estimator.wait_s(now=90.0) == 0
    assert estimator.ongoing == 0


def test_a_stall_is_noticed_while_it_lasts_and_a_new_pace_is_learned_after_it():
    estimator = WaitEstimator(full_batch_cost=1)
    for now in range(10):
        finish_all(estimator, start_many(estimator, 2, cost=10, now=float(now)), now=now + 0.5)
    stalled = estimator.start(10, 10.0)
    steady_wait_s = estimator.wait_s(10.0)
    assert estimator.wait_s(10.0 + 3 * MEMORY_S) > 10 * steady_wait_s
    finish_all(estimator, [stalled], now=10.0 + 3 * MEMORY_S)
    for step in range(1000):  # ten times as fast from here on
        now = 100 + step * 0.1
        finish_all(estimator, [estimator.start(40, now)], now=now + 0.1)
    estimator.start(40, 300.0)
    assert estimator.wait_s(300.0) == pytest.approx(0.1, rel=0.05)


def test_requests_of_one_forward_count_with_their_joint_throughput():
    estimator = WaitEstimator(full_batch_cost=1)
    requests = start_many(estimator, 32, cost=1, now=0.0)
    finish_all(estimator, requests, now=1.0)
    start_many(estimator, 320, cost=1, now=1.0)
    assert estimator.wait_s(now=1.0) == pytest.approx(10.0)


def test_a_burst_is_not_judged_by_the_pace_of_lone_queries():
    estimator = WaitEstimator(full_batch_cost=4000)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)  # 200 a second: nobody sent more
    start_many(estimator, 100, cost=100, now=100.0)
    assert estimator.wait_s(now=100.0) == pytest.approx(0.1 * 10_000 / 4000)


def test_the_pace_of_a_burst_is_learned_from_its_first_answers():
    estimator = WaitEstimator(full_batch_cost=4000)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)
    burst = start_many(estimator, 100, cost=100, now=100.0)
    unreported = (4000 - 100) / 2  # of a forward, on average
    finish_all(estimator, burst[:10], now=101.0)
    assert estimator.wait_s(now=101.0) == pytest.approx(9000 / (1000 + unreported))
    finish_all(estimator, burst[10:40], now=101.0)
    assert estimator.wait_s(now=101.0) == pytest.approx(6000 / (4000 + unreported))
    finish_all(estimator, burst[40:90], now=109.0)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)  # says nothing new about bursts
    start_many(estimator, 100, cost=100, now=200.0)
    assert estimator.wait_s(now=200.0) > 5


@pytest.mark.parametrize("leaving", [1, 2, 9])
def test_clients_that_leave_do_not_make_the_others_seem_slow(leaving):
    """As many seconds for each answered request, whoever else was there and left."""
    waits = []
    for abandoned in (0, leaving):
        estimator = WaitEstimator(full_batch_cost=1)
        for step in range(20):
            seconds, now = 0.5 * (1 + abandoned), step * 0.5 * (1 + abandoned)
            stays, *leave = start_many(estimator, 1 + abandoned, cost=10, now=now)
            for request in leave:
                estimator.finish(request, now + seconds, completed=False)
            finish_all(estimator, [stays], now=now + seconds)
        start_many(estimator, 3, cost=10, now=1000.0)
        waits.append(estimator.wait_s(1000.0))
    assert waits == pytest.approx([1.5, 1.5], rel=0.01)


def test_under_light_load_the_wait_is_the_recent_latency_whatever_the_cost():
    estimator = WaitEstimator(full_batch_cost=4000)
    finish_all(estimator, start_many(estimator, 3, cost=100, now=0.0), now=0.5)
    estimator.start(10, now=50.0)
    assert estimator.wait_s(now=50.0) == pytest.approx(0.5)


def test_the_first_answer_of_many_does_not_make_the_others_seem_slow():
    estimator = WaitEstimator(full_batch_cost=4000)
    first, second, *_ = start_many(estimator, 32, cost=20, now=0.0)
    finish_all(estimator, [first], now=0.5)
    assert estimator.wait_s(now=0.5) == pytest.approx(0.5)
    finish_all(estimator, [second], now=0.6)
    assert estimator.wait_s(now=0.6) == pytest.approx(0.6, rel=0.1)


def test_the_first_answer_of_a_forward_does_not_make_the_forward_seem_slow():
    estimator = WaitEstimator(full_batch_cost=4000)
    first, *_ = start_many(estimator, 60, cost=100, now=0.0)
    finish_all(estimator, [first], now=0.5)
    assert estimator.wait_s(now=0.5) < 2  # 1,900 of the others were done at the same time


def test_a_burst_that_is_over_does_not_make_later_requests_seem_slow():
    estimator = WaitEstimator(full_batch_cost=4000)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)
    burst = start_many(estimator, 100, cost=100, now=100.0)
    for number, request in enumerate(burst):
        finish_all(estimator, [request], now=100.0 + (number + 1) / 10)
    estimator.start(20, now=110.0)
    assert estimator.wait_s(now=110.0) < 4  # the last of the burst waited for ten seconds


def test_unanswered_requests_raise_the_expected_wait():
    estimator = WaitEstimator(full_batch_cost=4000)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)
    start_many(estimator, 3, cost=20, now=100.0)
    assert estimator.wait_s(now=130.0) == pytest.approx(30.0)


@pytest.mark.parametrize("overload", [2, 10, 50])
def test_under_any_overload_accepted_requests_wait_at_most_the_target_and_one_service(overload):
    target_s, service_s = 2.0, 0.1  # one request at a time
    estimator, running, waits, refused = WaitEstimator(full_batch_cost=1), [], [], 0
    finish_all(estimator, [estimator.start(1, now=-1.0)], now=-1.0 + service_s)  # a known pace
    free_at = 0.0  # when the encoder has finished all accepted requests
    for number in range(3000):
        now = number * service_s / overload
        while running and running[0][0] <= now:
            end, request = running.pop(0)
            finish_all(estimator, [request], now=end)
        if estimator.wait_s(now) > target_s:
            refused += 1
            continue
        request = estimator.start(1, now)
        waits.append(max(0.0, free_at - now))
        free_at = max(free_at, now) + service_s
        running.append((free_at, request))
    assert target_s - service_s <= max(waits) + 1e-6
    assert max(waits) <= target_s + 2 * service_s
    assert refused / 3000 == pytest.approx(1 - 1 / overload, abs=0.1)


def test_one_request_that_hangs_does_not_make_the_others_seem_slow():
    estimator = WaitEstimator(full_batch_cost=4000)
    estimator.start(20, now=0.0)
    run_one_at_a_time(estimator, 50, cost=20, seconds=0.1)
    estimator.start(20, now=50.0)
    assert estimator.wait_s(now=50.0) < 1.5
