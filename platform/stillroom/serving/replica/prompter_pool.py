"""A replica's tokenizers, each in use by one thread at a time, off the event loop."""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stillroom.serving.replica.tokenizer import AnyPrompter

T = TypeVar("T")
MAX_THREADS = 4  # more would only wait for the interpreter's lock


class PrompterPool:
    """Prompters and the threads that use them.

    What may take seconds has a thread of its own, where it waits for its like alone.

    Args:
        prompter: copied for each thread, since Hugging Face's fast tokenizers cannot be shared.
        threads: at most, for all else.
    """

    def __init__(self, prompter: AnyPrompter, threads: int):
        threads = min(threads, MAX_THREADS)
        self._threads = ThreadPoolExecutor(threads, "tokenise")
        self._slow_thread = ThreadPoolExecutor(1, "tokenise-slow")
        self._free: queue.SimpleQueue[AnyPrompter] = queue.SimpleQueue()
        for _ in range(threads + 1):
            self._free.put(prompter.copy())

    async def run(self, use: Callable[[AnyPrompter], T], *, slow: bool = False) -> T:
        """Call `use` with a prompter that no other thread has.

        Args:
            slow: it may take seconds.
        """

        def borrow() -> T:
            prompter = self._free.get()
            try:
                return use(prompter)
            finally:
                self._free.put(prompter)

        threads = self._slow_thread if slow else self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, borrow)
