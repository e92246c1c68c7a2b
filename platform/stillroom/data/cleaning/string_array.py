"""Many strings in two arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.data.cleaning.word_hashes import offsets_from_counts


@dataclass(frozen=True)
class StringArray:
    """Many strings in two arrays, which processes can share instead of copying.

    Attributes:
        data: UTF-8 of all strings, uint8.
        starts: string i is data[starts[i]:starts[i + 1]], int64, (strings + 1,).
    """

    data: np.ndarray
    starts: np.ndarray

    @staticmethod
    def pack(strings: Sequence[str]) -> "StringArray":
        """Packs strings; lone surrogates are allowed."""
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        return StringArray(
            np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets_from_counts(counts)
        )

    def __getitem__(self, i: int) -> str:
        data = self.data[self.starts[i] : self.starts[i + 1]]
        return data.tobytes().decode("utf-8", "surrogatepass")
