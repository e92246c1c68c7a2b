"""The memory that a call takes for Python's and numpy's objects."""

import tracemalloc


def peak_bytes(function):
    """The most bytes that were allocated at once during the call."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
