"""A replica's tokenizers: one thread each, and no request waits for one that takes seconds."""

import asyncio
import threading

import pytest

from stillroom.serving.messages import EmbedRequest
from stillroom.serving.replica.prompter_pool import PrompterPool
from stillroom.serving.replica.tokenizer import takes_long


class Prompter:
    """Counts how many threads are in it at once."""

    def __init__(self):
        self.inside = 0

    def copy(self):
        return Prompter()


def test_other_requests_are_answered_while_a_slow_one_is_worked_on():
    released = threading.Event()

    async def main():
        pool = PrompterPool(Prompter(), threads=1)
        slow = [asyncio.create_task(pool.run(lambda _: released.wait(60), slow=True))] * 3
        others = await asyncio.gather(*(pool.run(lambda _, n=n: n) for n in range(20)))
        assert not any(task.done() for task in slow)
        released.set()
        return others, await asyncio.gather(*slow)

    others, slow = asyncio.run(main())
    assert others == list(range(20)) and slow == [True] * 3


def test_no_two_threads_have_the_same_prompter():
    def enter(prompter):
        prompter.inside += 1
        busy.wait(60)  # until all threads are inside of one
        assert prompter.inside == 1
        prompter.inside -= 1

    busy = threading.Barrier(4)

    async def main():
        pool = PrompterPool(Prompter(), threads=3)
        await asyncio.gather(*(pool.run(enter, slow=slow) for slow in (True, False, False, False)))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("texts", "slow"),
    [
        (["a text"], False),
        (["a text " * 50] * 2000, False),  # many short ones
        (["a" * 20_000], False),
        (["a" * 99_000] * 2, True),
        (["a" * 4_000_000], True),
    ],
    ids=["short", "many", "long", "two long", "huge"],
)
def test_only_long_texts_take_long(texts, slow):
    assert takes_long(EmbedRequest("m", texts, None, "passage")) is slow
