"""Which of many known texts a text shares words with, and how much of either."""

from dataclasses import dataclass

import numpy as np

from stillroom.data.cleaning.word_hashes import Words, find, mix, offsets

GRAM = 4  # words in a row; what texts share is made of such

WINDOW = 4  # of that many neighbours in a long text the rarest is indexed

SHORT = 40  # words; of a text that short every gram is indexed

COMMON = 10  # texts; a gram that more of them have is a phrase of the trade, or boilerplate

ENOUGH = 8  # rarer grams of a text, beside which its common ones are not indexed

POSTINGS = 32  # texts of one gram at most

AT_LEAST = 2  # indexed grams in common before two texts are compared

RARE = 0.9  # what words in a row count on average, to be a match by themselves

VERIFIED = 1 << 19  # words compared at a time


class Seen:
    """How many texts have a gram, from a sketch: never too few, and 255 stands for more.

    Attributes:
        counters: uint8, a power of two of them; a gram counts under the first bits of its hash.
    """

    def __init__(self, grams: int):
        """For about so many grams, words of all texts together."""
        self.counters = np.zeros(1 << min(27, max(16, grams.bit_length())), dtype=np.uint8)

    def add(self, words: Words) -> None:
        """Counts some texts."""
        grams, places = words.grams(GRAM)
        cells = np.sort(self._cells(grams) * len(words) + words.text_of(places))
        first = np.ones(len(cells), dtype=bool)
        first[1:] = cells[1:] != cells[:-1]
        cells, more = np.unique(cells[first] // max(1, len(words)), return_counts=True)
        self.counters[cells] = np.minimum(255, self.counters[cells] + more)

    def __call__(self, grams: np.ndarray) -> np.ndarray:
        return self.counters[self._cells(grams)]

    def _cells(self, grams: np.ndarray) -> np.ndarray:
        return (grams >> np.uint64(65 - len(self.counters).bit_length())).astype(np.int64)


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a text and a known one; all arrays are (found,).

    A word counts less where it lies in a phrase that many texts have: COMMON / (texts that do).

    Attributes:
        text, row: the text's place among those asked, and the known one's.
        of_text, of_row: the share of its words that lie in runs which the other has too.
        weight: what a word of the text counts on average; 1 where no phrase in it is common.
        in_a_row: whether as many words in a row as were asked for are the same in both, and
            hardly a common phrase among them.
    """

    text: np.ndarray
    row: np.ndarray
    of_text: np.ndarray
    of_row: np.ndarray
    weight: np.ndarray
    in_a_row: np.ndarray


@dataclass(frozen=True)
class Index:
    """Known texts by their rarest grams.

    Every run of GRAM + WINDOW - 1 words of a known text holds an indexed gram of it (winnowing,
    Schleimer et al., 2003, with rarity in place of a random order), common phrases apart.

    Attributes:
        words: the known texts.
        seen: how common a gram is in all that is searched.
        grams, rows: indexed grams, ascending, uint64, and the text that each is of.
        there: whether any gram begins with these bits; most are told off by that alone.
    """

    words: Words
    seen: Seen
    grams: np.ndarray
    rows: np.ndarray
    there: np.ndarray

    @staticmethod
    def of(words: Words, seen: Seen) -> "Index":
        grams, places = words.grams(GRAM)
        rows = words.text_of(places)
        chosen = _rarest(grams, rows, words.counts, seen(grams))
        grams, rows = grams[chosen], rows[chosen]
        order = np.lexsort((rows, grams))
        grams, rows = grams[order], rows[order]
        again = np.zeros(len(grams), dtype=bool)  # a gram twice in one text
        again[1:] = (grams[1:] == grams[:-1]) & (rows[1:] == rows[:-1])
        grams, rows = grams[~again], rows[~again]
        nth = np.arange(len(grams)) - np.searchsorted(grams, grams)
        grams, rows = grams[nth < POSTINGS], rows[nth < POSTINGS]
        bits = min(27, max(10, int(8 * len(grams)).bit_length()))
        there = np.zeros(1 << bits, dtype=bool)
        there[grams >> np.uint64(64 - bits)] = True
        return Index(words, seen, grams, rows.astype(np.int32), there)

    def search(self, asked: Words, *, in_a_row: int) -> Overlaps:
        """Every known text that shares at least AT_LEAST indexed grams with one asked."""
        text, row = self._candidates(asked)
        parts = np.cumsum(asked.counts[text] + self.words.counts[row]) // VERIFIED
        found = [
            self._compare(asked.take(text[part]), self.words.take(row[part]), in_a_row)
            for part in np.split(np.arange(len(text)), np.flatnonzero(np.diff(parts)) + 1)
        ]
        return Overlaps(text, row, *(np.concatenate(each) for each in zip(*found, strict=True)))

    def _candidates(self, asked: Words) -> tuple[np.ndarray, np.ndarray]:
        grams, places = asked.grams(GRAM)
        shift = np.uint64(65 - len(self.there).bit_length())
        maybe = np.flatnonzero(self.there[grams >> shift])
        grams, text = grams[maybe], asked.text_of(places[maybe])
        low = np.searchsorted(self.grams, grams)
        counts = np.searchsorted(self.grams, grams, side="right") - low
        text, starts = np.repeat(text, counts), offsets(counts)
        entries = np.arange(starts[-1]) + np.repeat(low - starts[:-1], counts)
        both = text * len(self.words) + self.rows[entries]
        both, shared = np.unique(both, return_counts=True)
        return np.divmod(both[shared >= AT_LEAST], max(1, len(self.words)))

    def _compare(self, ones: Words, others: Words, in_a_row: int) -> tuple[np.ndarray, ...]:
        """All but the first two of `Overlaps`, couple by couple."""
        covered, of_other = _shared(ones, others)
        weights, other_weights = self._weights(ones), self._weights(others)
        total, shared = _sums(ones, weights), _sums(ones, weights * covered)
        other_total, of_row = _sums(others, other_weights), _sums(others, other_weights * of_other)
        # As many words in a row are in both only where as many are covered in a row.
        maybe = np.flatnonzero(_longest(ones, covered) >= in_a_row)
        row = np.zeros(len(ones), dtype=bool)
        row[maybe] = self._in_a_row(ones.take(maybe), others.take(maybe), in_a_row)
        return (
            shared / np.maximum(1e-9, total),
            of_row / np.maximum(1e-9, other_total),
            total / np.maximum(1, ones.counts),
            row,
        )

    def _in_a_row(self, ones: Words, others: Words, length: int) -> np.ndarray:
        keys, places = _keys(ones, length)
        places = places[find(np.sort(_keys(others, length)[0]), keys) >= 0]
        weights = np.concatenate([[0.0], np.cumsum(self._weights(ones))])
        places = places[weights[places + length] - weights[places] >= RARE * length]
        return np.bincount(ones.text_of(places), minlength=len(ones)) > 0

    def _weights(self, words: Words) -> np.ndarray:
        """What each word counts, by the commonest gram that it lies in."""
        grams, places = words.grams(GRAM)
        seen = np.zeros(len(words.hashes), dtype=np.uint8)
        counts = self.seen(grams)
        for word in range(GRAM):
            seen[places + word] = np.maximum(seen[places + word], counts)
        return COMMON / np.maximum(COMMON, seen)


def _rarest(
    grams: np.ndarray, rows: np.ndarray, counts: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """Places of the grams to index: all of a short text, the rarest of each window of others."""
    # Among those seen as often, by hash, which is the same in every text.
    rank = (seen.astype(np.uint64) << np.uint64(56)) | (mix(grams) >> np.uint64(8))
    chosen = (counts <= SHORT)[rows]
    begins = np.arange(max(0, len(grams) - WINDOW + 1))
    begins = begins[rows[begins] == rows[begins + WINDOW - 1]]
    best = np.argmin(np.stack([rank[begins + i] for i in range(WINDOW)]), axis=0)
    chosen[begins + best] = True
    common = seen > COMMON
    rarer = np.bincount(rows[chosen & ~common], minlength=len(counts))
    return np.flatnonzero(chosen & ~(common & (rarer >= ENOUGH)[rows]))


def _shared(ones: Words, others: Words) -> tuple[np.ndarray, np.ndarray]:
    """Which words of both lie in grams that the other of the couple has too."""
    (keys, places), (other_keys, other_places) = _keys(ones, GRAM), _keys(others, GRAM)
    return (
        _cover(ones, places[find(np.sort(other_keys), keys) >= 0]),
        _cover(others, other_places[find(np.sort(keys), other_keys) >= 0]),
    )


def _keys(words: Words, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Grams, made different from couple to couple, and their places."""
    grams, places = words.grams(length)
    # The couple comes first, so that what is looked up together stands together.
    couple = words.text_of(places).astype(np.uint64)
    return (couple << np.uint64(40)) | (grams >> np.uint64(24)), places


def _cover(words: Words, places: np.ndarray) -> np.ndarray:
    """Which words lie in the grams at these places, bool, (words,)."""
    covered = np.zeros(len(words.hashes), dtype=bool)
    for word in range(GRAM):
        covered[places + word] = True
    return covered


def _sums(words: Words, of_words: np.ndarray) -> np.ndarray:
    """The sum over each text's words."""
    sums = np.concatenate([[0.0], np.cumsum(of_words)])
    return sums[words.starts[1:]] - sums[words.starts[:-1]]


def _longest(words: Words, covered: np.ndarray) -> np.ndarray:
    """The longest run of covered words in each text."""
    ends = np.flatnonzero(covered & np.append(~covered[1:], True))
    begins = np.flatnonzero(covered & np.append(True, ~covered[:-1]))
    # A run does not go beyond its text.
    cut = words.starts[1:-1]
    cut = cut[(cut > 0) & (cut < len(covered))]
    cut = cut[covered[cut] & covered[cut - 1]]
    begins, ends = np.union1d(begins, cut), np.union1d(ends, cut - 1)
    longest = np.zeros(len(words), dtype=np.int64)
    np.maximum.at(longest, words.text_of(begins), ends - begins + 1)
    return longest
