import asyncio

import pytest
from ray.serve.exceptions import BackPressureError

from stillroom.serving.routing.handles import LocalHandle


class Held:
    """A replica that answers when it is let."""

    def __init__(self):
        self.free = asyncio.Event()
        self.cancelled = 0

    async def encode(self, work):
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if work is None:
            raise ValueError("nothing to do")
        return work * 2


def test_a_replica_in_this_process_takes_so_many_calls_and_refuses_the_next_as_serve_does():
    async def main():
        replica = Held()
        handle = LocalHandle(replica, most=2)
        taken = [handle.encode.remote(number) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(BackPressureError):
            await handle.encode.remote(3)
        replica.free.set()
        assert await asyncio.gather(*taken) == [2, 4]
        assert await handle.encode.remote(3) == 6

    asyncio.run(main())


def test_who_cancels_or_fails_leaves_his_place_to_the_next():
    async def main():
        replica = Held()
        handle = LocalHandle(replica, most=1)
        gone = handle.encode.remote(1)
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert replica.cancelled == 1
        replica.free.set()
        with pytest.raises(ValueError, match="nothing to do"):
            await handle.encode.remote(None)
        assert await handle.encode.remote(5) == 10

    asyncio.run(main())
