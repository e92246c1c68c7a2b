import asyncio
import threading

import numpy as np
import pytest

from stillroom.encoders.tokens.batch import Tokens
from stillroom.serving.replica.batching import Batcher


def text(length: int, mark: int = 0) -> Tokens:
    return Tokens(ids=[mark] * length, pool_from=0)


class RecordingForward:
    """A forward that returns (mark, length) for each text, and records the texts of each call."""

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


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_vectors_return_to_their_requests_in_order_whatever_the_lengths(packed, concurrent):
    async def main():
        forward = RecordingForward()
        batcher = Batcher(
            forward,
            batch_tokens=64,
            max_wait_s=0.001,
            packed=packed,
            threads=3,
            concurrent=concurrent,
        )
        rng = np.random.default_rng(0)
        requests = [
            [text(int(n), mark=100 * r + i) for i, n in enumerate(rng.integers(1, 80, size))]
            for r, size in enumerate([1, 50, 3, 1, 20])
        ]
        answers = await asyncio.gather(*map(batcher.encode, requests))
        for request, answer in zip(requests, answers, strict=True):
            np.testing.assert_array_equal(answer.vectors, [[t.ids[0], len(t.ids)] for t in request])
        for batch in forward.batches:
            lengths = [len(t.ids) for t in batch]
            assert (
                len(batch) == 1 or (sum(lengths) if packed else len(lengths) * max(lengths)) <= 64
            )

    asyncio.run(main())


def test_requests_that_arrive_during_a_forward_share_the_next_one():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=1000, max_wait_s=0)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(5)]))
        await forward.running()
        others = [asyncio.create_task(batcher.encode([text(5, mark=i)])) for i in range(8)]
        await asyncio.sleep(0)  # each task puts its text into the queue
        forward.gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in forward.batches] == [1, 8]

    asyncio.run(main())


def test_a_query_does_not_wait_for_another_clients_thousand_documents():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=100, max_wait_s=0)
        forward.hold()
        documents = asyncio.create_task(batcher.encode([text(50)] * 1000))
        await forward.running()
        query = asyncio.create_task(batcher.encode([text(4, mark=7)]))
        await asyncio.sleep(0)
        forward.gate.set()
        np.testing.assert_array_equal((await query).vectors, [[7, 4]])
        assert len(forward.batches) <= 4
        assert len((await documents).vectors) == 1000

    asyncio.run(main())


def test_equal_requests_are_finished_one_after_another():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=50, max_wait_s=0)
        await asyncio.gather(*(batcher.encode([text(10, mark=i)] * 10) for i in range(4)))
        marks = [{t.ids[0] for t in batch} for batch in forward.batches]
        assert marks == [{0}, {0}, {1}, {1}, {2}, {2}, {3}, {3}]

    asyncio.run(main())


def test_an_endless_stream_of_small_requests_does_not_starve_a_large_one():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=50, max_wait_s=0)
        large = asyncio.create_task(batcher.encode([text(50, mark=9)] * 3))
        small = set()
        while not large.done():
            # Some of them always have fewer texts left than the large one.
            while len(small) < 40:
                small.add(asyncio.create_task(batcher.encode([text(25)])))
            _, small = await asyncio.wait(small, return_when=asyncio.FIRST_COMPLETED)
        large_forwards = [i for i, batch in enumerate(forward.batches) if batch[0].ids[0] == 9]
        assert len(large_forwards) == 3 and large_forwards[-1] <= 6
        for task in small:
            task.cancel()

    asyncio.run(main())


def test_a_client_that_left_causes_no_more_forwards():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=10, max_wait_s=0)
        forward.hold()
        cancelled = asyncio.create_task(batcher.encode([text(10)] * 100))
        await forward.running()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        forward.gate.set()
        await batcher.encode([text(10, mark=3)])
        assert len(forward.batches) == 2

    asyncio.run(main())


def test_a_failed_forward_fails_its_own_requests_and_no_later_ones():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=10, max_wait_s=0)
        with pytest.raises(ValueError, match="poison"):
            await batcher.encode([text(10), text(10, mark=-1), text(10)])
        np.testing.assert_array_equal((await batcher.encode([text(2, mark=5)])).vectors, [[5, 2]])
        assert batcher.alive()

    asyncio.run(main())


def test_waiting_texts_of_a_failed_request_are_not_encoded():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=10, max_wait_s=0)
        with pytest.raises(ValueError, match="poison"):
            await batcher.encode([text(10, mark=-1)] * 5)
        await batcher.encode([text(10)])
        assert len(forward.batches) == 2

    asyncio.run(main())


def test_a_lone_caller_does_not_wait_for_others():
    async def main():
        batcher = Batcher(RecordingForward(), batch_tokens=1000, max_wait_s=10**6)
        for _ in range(3):
            await batcher.encode([text(5), text(6)])

    asyncio.run(main())


def test_after_a_shared_forward_an_idle_batcher_waits_for_more_texts():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=1000, max_wait_s=0.05)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(5)]))
        await forward.running()
        others = [asyncio.create_task(batcher.encode([text(5)])) for _ in range(2)]
        await asyncio.sleep(0)
        forward.gate.set()
        await asyncio.gather(first, *others)
        early = asyncio.create_task(batcher.encode([text(5)]))
        await asyncio.sleep(0.001)  # the batcher has seen the text, and is idle
        await asyncio.gather(early, batcher.encode([text(5)]))
        assert [len(batch) for batch in forward.batches] == [1, 2, 2]

    asyncio.run(main())


def test_a_request_is_concurrent_among_the_threads_and_its_time_is_counted_once():
    async def main():
        two_at_once = threading.Barrier(2, timeout=30)

        def forward(tokens, threads):
            two_at_once.wait()
            return np.array([[t.ids[0], threads] for t in tokens], dtype=np.float32)

        batcher = Batcher(
            forward, batch_tokens=64, max_wait_s=0, packed=True, threads=2, concurrent=True
        )
        answer = await batcher.encode([text(8, mark=i) for i in range(8)])
        np.testing.assert_array_equal(answer.vectors, [[i, 1] for i in range(8)])
        assert (answer.forwards, answer.batch_texts) == (2, 8)
        assert answer.encode_s > 0 and answer.wait_s >= 0

    asyncio.run(main())


def test_without_concurrency_a_forward_has_all_threads_and_runs_alone():
    async def main():
        forward = RecordingForward()

        def exclusive_forward(tokens, threads):
            assert threads == 3 and exclusive_forward.free.acquire(blocking=False)
            try:
                return forward(tokens, threads)
            finally:
                exclusive_forward.free.release()

        exclusive_forward.free = threading.Lock()
        batcher = Batcher(exclusive_forward, batch_tokens=10, max_wait_s=0, threads=3)
        await asyncio.gather(*(batcher.encode([text(5), text(6)]) for _ in range(20)))
        assert len(forward.batches) >= 20

    asyncio.run(main())


def test_a_bug_in_the_batcher_ends_its_loop_so_that_the_replica_is_replaced():
    async def main():
        batcher = Batcher(lambda tokens, _: np.empty((7, 2)), batch_tokens=10, max_wait_s=0)
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


def test_a_result_reports_what_encoding_cost():
    async def main():
        forward = RecordingForward()
        batcher = Batcher(forward, batch_tokens=64, max_wait_s=0)
        forward.hold()
        first = asyncio.create_task(batcher.encode([text(20)]))
        await forward.running()
        split = asyncio.create_task(batcher.encode([text(30), text(8)]))
        joined = asyncio.create_task(batcher.encode([text(7)]))
        await asyncio.sleep(0)
        forward.gate.set()
        first, split, joined = await asyncio.gather(first, split, joined)
        # Then 30 alone, because padding the others to it would be waste; then 8 and 7 together.
        assert [sorted(len(t.ids) for t in batch) for batch in forward.batches] == [
            [20], [30], [7, 8],
        ]  # fmt: skip
        assert (first.padded_tokens, split.padded_tokens, joined.padded_tokens) == (20, 38, 8)
        assert (split.forwards, split.batch_texts) == (2, 3)
        assert (joined.forwards, joined.batch_texts) == (1, 2)
        assert joined.wait_s > 0 and split.encode_s > joined.encode_s > 0

    asyncio.run(main())


def test_without_padding_a_request_costs_exactly_its_own_tokens():
    async def main():
        batcher = Batcher(RecordingForward(), batch_tokens=64, max_wait_s=0, packed=True)
        short, long = await asyncio.gather(
            batcher.encode([text(3), text(4)]), batcher.encode([text(40)])
        )
        assert (short.padded_tokens, long.padded_tokens) == (7, 40)
        assert (short.batch_texts, long.batch_texts) == (3, 3)

    asyncio.run(main())
