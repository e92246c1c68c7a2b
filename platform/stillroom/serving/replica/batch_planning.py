"""Plans which texts share a forward, and on how many threads: pure functions of the waiting texts.

One rule: a budget of tokens for each forward. Small requests share one forward, large requests
take several. Texts of similar length share a forward, so that it has little padding.
"""

from collections.abc import Mapping, Sequence
from math import ceil

MAX_PADDING = 0.25  # share of a forward's tokens that may be padding …
SMALL_BATCH = 1 / 8  # … unless the forward fills less than this share of the budget
MIN_FORWARD = 1 / 16  # of the budget: a smaller separate forward costs more than it saves


def choose_request(texts_left: Mapping[int, int], *, oldest: bool) -> int:
    """The request that the next forward serves first.

    Callers alternate between the oldest and the smallest request: a query does not wait for another
    client's thousand documents, and no request waits forever. Round robin would finish all of them
    at the very end.

    Args:
        texts_left: request → its waiting texts, oldest request first.
        oldest: take the oldest request, else the one with the fewest texts left.
    """
    return next(iter(texts_left)) if oldest else min(texts_left, key=lambda n: texts_left[n])


def choose_batch(
    lengths: Sequence[tuple[int, ...]],
    anchor: int,
    budget: int,
    small: float,
    *,
    packed: bool = False,
) -> tuple[int, int]:
    """The slice [start, end) of texts to encode together with the one at `anchor`.

    Args:
        lengths: one tuple for each waiting text, sorted; its first number is the text's tokens.
        anchor: index of the text that must be included, even if it is longer than the budget.
        budget: largest (texts × longest text), in tokens; packed: largest sum of tokens.
        small: up to this many tokens, padding costs less than launching another forward.
        packed: a forward has no padding.
    """
    start, end = anchor, anchor + 1
    tokens = lengths[anchor][0]

    def fits(start: int, end: int, tokens: int) -> bool:
        padded = tokens if packed else (end - start) * lengths[end - 1][0]
        if padded > budget:
            return False
        return padded <= small or padded - tokens <= MAX_PADDING * padded

    while True:
        shorter = lengths[start - 1][0] if start else None
        longer = lengths[end][0] if end < len(lengths) else None
        # Shorter texts first: they do not change the longest text, which sets the padding of all.
        if shorter is not None and fits(start - 1, end, tokens + shorter):
            start, tokens = start - 1, tokens + shorter
        elif longer is not None and fits(start, end + 1, tokens + longer):
            end, tokens = end + 1, tokens + longer
        else:
            return start, end


def split_threads(texts: int, tokens: int, free_threads: int, budget: int) -> tuple[int, int]:
    """How many of the free threads the next forward gets, and its part of the budget.

    As many forwards run at once as there is enough work for. A forward on few threads is more
    efficient than one on many, which wait for the last thread after every layer.

    Args:
        texts, tokens: numbers of waiting ones.
        free_threads: one or more.
        budget: of a forward, in tokens.
    """
    forwards = max(1, min(free_threads, texts, int(tokens / (MIN_FORWARD * budget))))
    return free_threads // forwards, min(budget, ceil(tokens / forwards))
