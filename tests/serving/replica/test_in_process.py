import asyncio

import pytest
from ray.serve.exceptions import BackPressureError

from stillroom.serving.replica.in_process import LocalHandle


class HeldReplica:
    """A replica that answers once `released` is set."""

    def __init__(self):
        self.released = asyncio.Event()
        self.cancelled = 0

    async def encode(self, job):
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if job is None:
            raise ValueError("nothing to do")
        return job * 2


def test_a_replica_in_this_process_refuses_calls_beyond_its_limit_as_serve_does():
    async def main():
        replica = HeldReplica()
        handle = LocalHandle(replica, max_ongoing=2)
        accepted = [handle.encode.remote(number) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(BackPressureError):
            await handle.encode.remote(3)
        replica.released.set()
        assert await asyncio.gather(*accepted) == [2, 4]
        assert await handle.encode.remote(3) == 6

    asyncio.run(main())


def test_a_cancelled_or_failed_call_makes_room_for_the_next():
    async def main():
        replica = HeldReplica()
        handle = LocalHandle(replica, max_ongoing=1)
        cancelled = handle.encode.remote(1)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert replica.cancelled == 1
        replica.released.set()
        with pytest.raises(ValueError, match="nothing to do"):
            await handle.encode.remote(None)
        assert await handle.encode.remote(5) == 10

    asyncio.run(main())
