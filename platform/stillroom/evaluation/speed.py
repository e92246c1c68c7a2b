"""Texts per second of several encoders, measured in turns.

Measuring each encoder for minutes, one after the other, would also measure changes of the machine's
load. With short rounds in turns, all encoders see the same load, and the spread over the rounds
shows how steady it was.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUNDS = 5
ROUND_S = 1.0  # of an encoder's work in a round, about
MIN_TEXTS = 32  # in a round
MAX_RELIABLE_SPREAD = 1.5


@dataclass(frozen=True)
class Speed:
    """Speeds of one encoder in all rounds."""

    rounds: tuple[float, ...]  # texts per second

    @property
    def texts_per_second(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The fastest round's speed divided by the slowest one's."""
        return max(self.rounds) / min(self.rounds)


def is_unreliable(spread: float | None) -> bool:
    """Whether rounds differ so much that their median is meaningless."""
    return spread is not None and spread > MAX_RELIABLE_SPREAD


def texts_per_round(texts_per_second: float) -> int:
    """Number of texts per round for an encoder of about this speed."""
    return max(MIN_TEXTS, round(texts_per_second * ROUND_S))


def time_in_turns(
    encoders: Mapping[str, Callable[[], int]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """The speed of each encoder.

    Args:
        encoders: name → a function that encodes a sample, and returns its number of texts.
    """
    speeds: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():  # to warm up: the first call allocates, compiles and caches
        encode()
    for _ in range(rounds):
        for name, encode in encoders.items():
            started_at = clock()
            count = encode()
            speeds[name].append(count / (clock() - started_at))
    return {name: Speed(tuple(values)) for name, values in speeds.items()}
