"""SplitMix64 (Steele et al., 2014) on arrays: hashes of 64-bit numbers."""

import numpy as np

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


def mix_bits(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: every bit of the result depends on every bit of a number.

    Maps 0 to 0; use `splitmix64` where numbers are small or close together.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """A whole SplitMix64 step: a permutation of uint64 that moves neighbours far apart."""
    return mix_bits(numbers.astype(np.uint64) + GOLDEN_RATIO)
