"""Statistics of a field's texts in bounded memory: counts, lengths, scripts, distinct texts."""

import random
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.readers.documents import CountTokens
from stillroom.data.text.detection import SAMPLE_CHARACTERS, SAMPLE_TEXTS, detect_language
from stillroom.data.text.words import count_words

SAMPLE = 4096  # texts of a field whose lengths and script are taken
MAX_HASHES = 1 << 17  # of a field; with more distinct texts their number is estimated
SCRIPT_CHARACTERS = 500  # of a text, from which its script is determined
HISTOGRAM_BINS = 24
PERCENTILES = (5, 50, 95, 99)


class DistinctCounter:
    """Counts distinct texts: exactly up to `limit`, then by estimate.

    Keeps only the hashes that end in some number of zero bits, the smallest for which at most
    `limit` remain: distinct sampling (Gibbons, 2001), with a standard error of about
    1 / sqrt(limit / 2).
    """

    def __init__(self, limit: int = MAX_HASHES):
        self.limit = limit
        self.mask = 0
        self.hashes: set[int] = set()

    def add(self, text: str) -> None:
        """Counts a text, if it is new."""
        key = int(text_key(text)[:16], 16)
        if key & self.mask:
            return
        self.hashes.add(key)
        while len(self.hashes) > self.limit:
            self.mask = self.mask << 1 | 1
            self.hashes = {key for key in self.hashes if not key & self.mask}

    @property
    def exact(self) -> bool:
        """Whether the count is exact."""
        return self.mask == 0

    def __len__(self) -> int:
        return len(self.hashes) * (self.mask + 1)


class SampledText(NamedTuple):
    """A text's script, and its lengths: in the unit asked for, in words, in characters."""

    script: str
    length: int
    words: int
    characters: int


@dataclass
class TextStatistics:
    """Collects statistics of a field's texts; all but counts are of a random sample."""

    random: random.Random
    count: int = 0
    distinct: DistinctCounter = field(default_factory=DistinctCounter)
    sampled: list[SampledText] = field(default_factory=list)
    beginnings: list[str] = field(default_factory=list)  # of some, to detect their language

    def add(self, text: str, length: CountTokens) -> None:
        """Adds a text."""
        self.distinct.add(text)
        slot = reservoir_slot(self.random, self.count, SAMPLE)
        self.count += 1
        if slot is not None:
            sampled = SampledText(script_of(text), length(text), count_words(text), len(text))
            self.sampled[slot : slot + 1] = [sampled]
            if slot < SAMPLE_TEXTS:
                self.beginnings[slot : slot + 1] = [text[:SAMPLE_CHARACTERS]]

    def summary(self) -> dict[str, Any]:
        """The statistics as plain data."""
        lengths = np.array([text.length for text in self.sampled])
        distinct = min(self.count, len(self.distinct))
        longest = int(np.percentile(lengths, 99)) + 1
        bins = min(HISTOGRAM_BINS, longest)
        counts, edges = np.histogram(np.minimum(lengths, longest), bins, (0, longest))
        scripts = Counter(text.script for text in self.sampled).most_common()
        return {
            "texts": self.count,
            "distinct": distinct,
            "repeated": self.count - distinct,
            "exact": self.distinct.exact,
            "lengths": {
                "mean": round(float(lengths.mean()), 1),
                **{f"p{p}": int(np.percentile(lengths, p)) for p in PERCENTILES},
                "longest": int(lengths.max()),
            },
            "histogram": [
                [round(float(low), 1), round(float(high), 1), int(count)]
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
            ],
            "scripts": {name: round(count / len(self.sampled), 4) for name, count in scripts},
            "by_script": {name: self._mean_lengths(name) for name, _ in scripts},
            "language": detect_language(self.beginnings),
        }

    def _mean_lengths(self, script: str) -> dict[str, float]:
        """Mean numbers of words and characters of the sampled texts in a script."""
        texts = [(text.words, text.characters) for text in self.sampled if text.script == script]
        words, characters = np.mean(texts, axis=0).round(1).tolist()
        return {"words": words, "characters": characters}


def reservoir_slot(rng: random.Random, seen: int, size: int) -> int | None:
    """The position of the next item in a random sample of `size`, after `seen` items; None: not
    sampled.
    """
    slot = seen if seen < size else rng.randrange(seen + 1)
    return slot if slot < size else None


def script_of(text: str) -> str:
    """The script of most of a text's first letters, from their Unicode names, or `no letters`."""
    scripts = Counter(filter(None, map(_script, text[:SCRIPT_CHARACTERS])))
    return scripts.most_common(1)[0][0] if scripts else "no letters"


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "unnamed").split()[0].split("-")[0]
    return {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA"}.get(name, name).title()
