import asyncio
import threading

import numpy as np
import pytest

from stillroom.encoders.tokens.prompter import Tokens
from stillroom.serving.replica.batching import Batcher, share, window


def text(length: int, mark: int = 0) -> Tokens:
    return Tokens(ids=[mark] * length, pool_from=0)


class Recorder:
    """A forward whose row for a text is (its mark, its length); keeps what each call was given."""

    def __init__(self):
        self.batches: list[list[Tokens]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, tokens: list[Tokens], threads: int) -> np.ndarray:
        self.batches.append(tokens)
        self.entered.set()
        assert self.gate.wait(30)
        if any(t.ids[0] < 0 for t in tokens):
            raise ValueError("poison")
        return np.array([[t.ids[0], len(t.ids)] for t in tokens], dtype=np.float32)

    def hold(self):
        self.gate.clear()
        self.entered.clear()

    async def running(self):
        await asyncio.to_thread(self.entered.wait, 30)


@pytest.mark.parametrize(
    ("lengths", "head", "budget", "slice_"),
    [
        ([10], 0, 100, (0, 1)),
        ([500], 0, 100, (0, 1)),  # longer than the budget: alone, but served
        ([10] * 20, 0, 100, (0, 10)),
        ([10] * 20, 19, 100, (10, 20)),
        ([8, 9, 10, 10, 10], 4, 1000, (0, 5)),
        ([10, 10, 100, 100], 3, 400, (2, 4)),  # 10s would be nine tenths padding
        ([1, 2, 6], 2, 400, (0, 3)),  # so small that padding costs less than a launch
        ([50, 100], 0, 100, (0, 1)),
    ],
)
def test_a_forward_keeps_to_its_budget_and_to_texts_of_like_length(lengths, head, budget, slice_):
    assert window([(n,) for n in lengths], head, budget, budget / 8) == slice_


@pytest.mark.parametrize(
    ("lengths", "head", "budget", "slice_"),
    [
        ([10, 10, 100, 100], 3, 400, (0, 4)),
        ([10, 20, 30, 40], 0, 60, (0, 3)),
        ([10, 20, 30, 40], 3, 60, (3, 4)),
        ([500], 0, 100, (0, 1)),
    ],
)
def test_a_forward_without_padding_takes_texts_of_any_length(lengths, head, budget, slice_):
    assert window([(n,) for n in lengths], head, budget, 0, packed=True) == slice_


@pytest.mark.parametrize(
    ("waiting", "tokens", "free", "shared"),
    [
        (1, 500, 4, (4, 500)),  # one text cannot be divided
        (2, 300, 4, (2, 150)),
        (40, 800, 4, (1, 200)),
        (40, 8000, 4, (1, 1024)),
        (40, 800, 1, (1, 800)),
        (12, 100, 4, (4, 100)),  # too little for two
        (20, 200, 4, (1, 67)),
    ],
)
def test_a_cpu_s_threads_go_to_as_many_forwards_as_what_waits_is_worth(
    waiting, tokens, free, shared
):
    assert share(waiting, tokens, free, 1024) == shared


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_return_to_their_requests_in_order_whatever_their_lengths(packed, divided):
    async def main():
        forward = Recorder()
        batcher = Batcher(
            forward, budget=64, wait_s=0.001, packed=packed, threads=3, divided=divided
        )
        rng = np.random.default_rng(0)
        requests = [
            [text(int(n), mark=100 * r + i) for i, n in enumerate(rng.integers(1, 80, size))]
            for r, size in enumerate([1, 50, 3, 1, 20])
        ]
        answers = await asyncio.gather(*map(batcher.encode, requests))
        for request, answer in zip(requests, answers, strict=True):
            np.testing.assert_array_equal(answer.rows, [[t.ids[0], len(t.ids)] for t in request])
        for batch in forward.batches:
            own = [len(t.ids) for t in batch]
            assert len(batch) == 1 or (sum(own) if packed else len(own) * max(own)) <= 64

    asyncio.run(main())


def test_requests_that_arrive_during_a_forward_share_the_next_one():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=1000, wait_s=0)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(5)]))
        await forward.running()
        others = [asyncio.create_task(batcher.encode([text(5, mark=i)])) for i in range(8)]
        await asyncio.sleep(0)  # each task has put its text into the queue
        forward.gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in forward.batches] == [1, 8]

    asyncio.run(main())


def test_a_query_does_not_wait_for_another_clients_thousand_documents():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=100, wait_s=0)
        forward.hold()
        documents = asyncio.create_task(batcher.encode([text(50)] * 1000))
        await forward.running()
        query = asyncio.create_task(batcher.encode([text(4, mark=7)]))
        await asyncio.sleep(0)
        forward.gate.set()
        np.testing.assert_array_equal((await query).rows, [[7, 4]])
        assert len(forward.batches) <= 4
        assert len((await documents).rows) == 1000

    asyncio.run(main())


def test_of_equal_requests_the_first_is_done_before_the_next_is_begun():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=50, wait_s=0)
        await asyncio.gather(*(batcher.encode([text(10, mark=i)] * 10) for i in range(4)))
        marks = [{t.ids[0] for t in batch} for batch in forward.batches]
        assert marks == [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]

    asyncio.run(main())


def test_small_requests_without_end_do_not_keep_a_large_one_waiting():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=50, wait_s=0)
        large = asyncio.create_task(batcher.encode([text(50, mark=9)] * 3))
        small = set()
        while not large.done():
            # There are always some that have less left than the large one.
            while len(small) < 40:
                small.add(asyncio.create_task(batcher.encode([text(25)])))
            _, small = await asyncio.wait(small, return_when=asyncio.FIRST_COMPLETED)
        of_large = [i for i, batch in enumerate(forward.batches) if batch[0].ids[0] == 9]
        assert len(of_large) == 3 and of_large[-1] <= 6
        for task in small:
            task.cancel()

    asyncio.run(main())


def test_a_client_that_left_costs_no_further_forwards():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=10, wait_s=0)
        forward.hold()
        leaver = asyncio.create_task(batcher.encode([text(10)] * 100))
        await forward.running()
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        forward.gate.set()
        await batcher.encode([text(10, mark=3)])
        assert len(forward.batches) == 2

    asyncio.run(main())


def test_a_failed_forward_fails_its_requests_and_no_later_ones():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=10, wait_s=0)
        with pytest.raises(ValueError, match="poison"):
            await batcher.encode([text(10), text(10, mark=-1), text(10)])
        np.testing.assert_array_equal((await batcher.encode([text(2, mark=5)])).rows, [[5, 2]])
        assert batcher.alive()

    asyncio.run(main())


def test_the_texts_of_a_failed_request_that_still_wait_are_not_encoded():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=10, wait_s=0)
        with pytest.raises(ValueError, match="poison"):
            await batcher.encode([text(10, mark=-1)] * 5)
        await batcher.encode([text(10)])
        assert len(forward.batches) == 2

    asyncio.run(main())


def test_who_calls_alone_does_not_wait_for_company():
    async def main():
        batcher = Batcher(Recorder(), budget=1000, wait_s=10**6)
        for _ in range(3):
            await batcher.encode([text(5), text(6)])

    asyncio.run(main())


def test_after_company_an_idle_batcher_waits_for_more():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=1000, wait_s=0.05)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(5)]))
        await forward.running()
        others = [asyncio.create_task(batcher.encode([text(5)])) for _ in range(2)]
        await asyncio.sleep(0)
        forward.gate.set()
        await asyncio.gather(first, *others)
        early = asyncio.create_task(batcher.encode([text(5)]))
        await asyncio.sleep(0.001)  # the batcher has seen it, and is idle
        await asyncio.gather(early, batcher.encode([text(5)]))
        assert [len(batch) for batch in forward.batches] == [1, 2, 2]

    asyncio.run(main())


def test_a_request_is_divided_among_the_threads_and_its_time_is_counted_once():
    async def main():
        both = threading.Barrier(2, timeout=30)  # passed when two forwards run at once

        def forward(tokens, threads):
            both.wait()
            return np.array([[t.ids[0], threads] for t in tokens], dtype=np.float32)

        batcher = Batcher(forward, budget=64, wait_s=0, packed=True, threads=2, divided=True)
        answer = await batcher.encode([text(8, mark=i) for i in range(8)])
        np.testing.assert_array_equal(answer.rows, [[i, 1] for i in range(8)])
        assert (answer.forwards, answer.batch_texts) == (2, 8)
        assert answer.encode_s > 0 and answer.wait_s >= 0

    asyncio.run(main())


def test_without_leave_to_divide_a_forward_has_all_threads_and_none_beside_it():
    async def main():
        forward = Recorder()

        def alone(tokens, threads):
            assert threads == 3 and alone.free.acquire(blocking=False)
            try:
                return forward(tokens, threads)
            finally:
                alone.free.release()

        alone.free = threading.Lock()
        batcher = Batcher(alone, budget=10, wait_s=0, threads=3)
        await asyncio.gather(*(batcher.encode([text(5), text(6)]) for _ in range(20)))
        assert len(forward.batches) >= 20

    asyncio.run(main())


def test_a_fault_of_the_batcher_s_own_is_told_so_that_the_replica_is_replaced():
    async def main():
        batcher = Batcher(lambda tokens, _: np.empty((7, 2)), budget=10, wait_s=0)
        lost = asyncio.create_task(batcher.encode([text(5)]))
        assert batcher.alive()
        with pytest.raises(ExceptionGroup):
            await asyncio.wait_for(asyncio.shield(until_dead(batcher)), 30)
        assert not batcher.alive()
        lost.cancel()

    async def until_dead(batcher):
        while batcher._loop is None:
            await asyncio.sleep(0)
        await batcher._loop

    asyncio.run(main())


def test_an_answer_says_what_it_cost():
    async def main():
        forward = Recorder()
        batcher = Batcher(forward, budget=64, wait_s=0)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(20)]))
        await forward.running()
        split = asyncio.create_task(batcher.encode([text(30), text(8)]))
        joined = asyncio.create_task(batcher.encode([text(7)]))
        await asyncio.sleep(0)
        forward.gate.set()
        first, split, joined = await asyncio.gather(first, split, joined)
        # Then 30 alone, for padding the others to it would be waste; then 8 and 7 together.
        assert [sorted(len(t.ids) for t in batch) for batch in forward.batches] == [
            [20], [30], [7, 8],
        ]  # fmt: skip
        assert (first.padded_tokens, split.padded_tokens, joined.padded_tokens) == (20, 38, 8)
        assert (split.forwards, split.batch_texts) == (2, 3)
        assert (joined.forwards, joined.batch_texts) == (1, 2)
        assert joined.wait_s > 0 and split.encode_s > joined.encode_s > 0

    asyncio.run(main())


def test_without_padding_a_request_costs_its_own_tokens_and_no_more():
    async def main():
        batcher = Batcher(Recorder(), budget=64, wait_s=0, packed=True)
        short, long = await asyncio.gather(
            batcher.encode([text(3), text(4)]), batcher.encode([text(40)])
        )
        assert (short.padded_tokens, long.padded_tokens) == (7, 40)
        assert (short.batch_texts, long.batch_texts) == (3, 3)

    asyncio.run(main())
