"""An index of texts by word n-grams: finds the texts that share words with a text, and how many."""

from dataclasses import dataclass

import numpy as np

from stillroom.data.cleaning.splitmix import mix_bits
from stillroom.data.cleaning.text_keys import equals_previous
from stillroom.data.cleaning.word_hashes import (
    WordHashes,
    concatenated_ranges,
    find_sorted,
)

GRAM_WORDS = 4  # words of the n-grams that shared text is made of
WINDOW_GRAMS = 4  # of this many neighbouring grams of a long text, the rarest is indexed
SHORT_TEXT_WORDS = 40  # of texts up to this length every gram is indexed
COMMON_TEXTS = 10  # a gram that more texts have is a stock phrase or boilerplate
ENOUGH_RARE_GRAMS = 8  # a text with as many rarer grams has its common ones left out
MAX_POSTINGS = 32  # texts listed for one gram
MIN_SHARED_GRAMS = 2  # indexed grams in common before two texts are compared
MIN_RUN_WEIGHT = 0.9  # mean weight of the words in a shared run that counts as a match
WORDS_PER_BATCH = 1 << 19  # compared at a time


class GramCounts:
    """How many texts have a gram, as a sketch: never too low, and 255 means 255 or more.

    Args:
        grams: how many grams to expect, about; the words of all texts together.

    Attributes:
        counters: uint8, (a power of two,); a gram is counted under the top bits of its hash.
    """

    def __init__(self, grams: int):
        self.counters = np.zeros(1 << min(27, max(16, grams.bit_length())), dtype=np.uint8)

    def add(self, words: WordHashes) -> None:
        """Counts each gram once for every text that has it."""
        grams, first_words = words.grams(GRAM_WORDS)
        cells = np.sort(self._cells(grams) * len(words) + words.text_of(first_words))
        distinct = cells[~equals_previous(cells)]
        cells, texts = np.unique(distinct // max(1, len(words)), return_counts=True)
        self.counters[cells] = np.minimum(255, self.counters[cells] + texts)

    def lookup(self, grams: np.ndarray) -> np.ndarray:
        """The count of each gram, uint8, (grams,)."""
        return self.counters[self._cells(grams)]

    def _cells(self, grams: np.ndarray) -> np.ndarray:
        return (grams >> np.uint64(65 - len(self.counters).bit_length())).astype(np.int64)


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a searched text and an indexed one that share words; arrays of shape (pairs,).

    Words in common phrases count less: COMMON_TEXTS / (texts that have the phrase).

    Attributes:
        text: index of the searched text.
        row: index of the indexed text.
        text_share: the share of the searched text's words in runs that the indexed text has too.
        row_share: the share of the indexed text's words in runs that the searched text has too.
        word_weight: the mean weight of the searched text's words; 1 if it has no common phrase.
        shares_run: whether both have a run of words in common, of the requested length and with
            hardly any common phrase.
    """

    text: np.ndarray
    row: np.ndarray
    text_share: np.ndarray
    row_share: np.ndarray
    word_weight: np.ndarray
    shares_run: np.ndarray


@dataclass(frozen=True)
class OverlapIndex:
    """Texts by their rarest grams.

    Every run of GRAM_WORDS + WINDOW_GRAMS - 1 words of an indexed text contains one of its indexed
    grams, except for common phrases: winnowing (Schleimer et al., 2003), by rarity instead of by a
    random order.

    Attributes:
        words: the indexed texts.
        gram_counts: how common a gram is in the whole collection.
        grams: indexed grams, ascending, uint64, (postings,).
        rows: the text of each gram, int32, (postings,).
        prefixes: whether any indexed gram begins with these bits, bool, (a power of two,); a
            filter that rejects most grams of a search.
    """

    words: WordHashes
    gram_counts: GramCounts
    grams: np.ndarray
    rows: np.ndarray
    prefixes: np.ndarray

    @staticmethod
    def build(words: WordHashes, gram_counts: GramCounts) -> "OverlapIndex":
        """Indexes texts.

        Args:
            gram_counts: of the collection that the texts are from.
        """
        grams, first_words = words.grams(GRAM_WORDS)
        rows = words.text_of(first_words)
        chosen = _rarest_grams(grams, rows, words.counts, gram_counts.lookup(grams))
        grams, rows = grams[chosen], rows[chosen]
        order = np.lexsort((rows, grams))
        grams, rows = grams[order], rows[order]
        twice_in_a_text = equals_previous(grams) & equals_previous(rows)
        grams, rows = grams[~twice_in_a_text], rows[~twice_in_a_text]
        posting = np.arange(len(grams)) - np.searchsorted(grams, grams)
        grams, rows = grams[posting < MAX_POSTINGS], rows[posting < MAX_POSTINGS]
        bits = min(27, max(10, int(8 * len(grams)).bit_length()))
        prefixes = np.zeros(1 << bits, dtype=bool)
        prefixes[grams >> np.uint64(64 - bits)] = True
        return OverlapIndex(words, gram_counts, grams, rows.astype(np.int32), prefixes)

    def search(self, texts: WordHashes, *, run_words: int) -> Overlaps:
        """Every pair of a text and an indexed one with MIN_SHARED_GRAMS indexed grams in common.

        Args:
            run_words: length of the runs that `Overlaps.shares_run` is about.
        """
        text, row = self._candidates(texts)
        batch = np.cumsum(texts.counts[text] + self.words.counts[row]) // WORDS_PER_BATCH
        compared = [
            self._compare(texts.take(text[pairs]), self.words.take(row[pairs]), run_words)
            for pairs in np.split(np.arange(len(text)), np.flatnonzero(np.diff(batch)) + 1)
        ]
        return Overlaps(
            text, row, *(np.concatenate(arrays) for arrays in zip(*compared, strict=True))
        )

    def _candidates(self, texts: WordHashes) -> tuple[np.ndarray, np.ndarray]:
        """Texts and rows of the pairs to compare, sorted by both."""
        grams, first_words = texts.grams(GRAM_WORDS)
        shift = np.uint64(65 - len(self.prefixes).bit_length())
        possible = np.flatnonzero(self.prefixes[grams >> shift])
        grams, text = grams[possible], texts.text_of(first_words[possible])
        start = np.searchsorted(self.grams, grams)
        counts = np.searchsorted(self.grams, grams, side="right") - start
        rows = self.rows[concatenated_ranges(start, counts)]
        pairs, shared = np.unique(
            np.repeat(text, counts) * len(self.words) + rows, return_counts=True
        )
        return np.divmod(pairs[shared >= MIN_SHARED_GRAMS], max(1, len(self.words)))

    def _compare(
        self, texts: WordHashes, rows: WordHashes, run_words: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The last four fields of `Overlaps` for pairs: text i with row i."""
        in_row, in_text = _shared_words(texts, rows)
        text_weights, row_weights = self._word_weights(texts), self._word_weights(rows)
        text_total = _sums_by_text(texts, text_weights)
        row_total = _sums_by_text(rows, row_weights)
        return (
            _sums_by_text(texts, text_weights * in_row) / np.maximum(1e-9, text_total),
            _sums_by_text(rows, row_weights * in_text) / np.maximum(1e-9, row_total),
            text_total / np.maximum(1, texts.counts),
            self._share_runs(texts, rows, in_row, run_words),
        )

    def _share_runs(
        self, texts: WordHashes, rows: WordHashes, in_row: np.ndarray, run_words: int
    ) -> np.ndarray:
        """Whether the pairs have `run_words` words in a row in common, bool, (pairs,).

        Args:
            in_row: whether each word of the texts is in a gram of its row, bool, (words,).
        """
        shares_run = np.zeros(len(texts), dtype=bool)
        # A cheap filter first: a shared run is at least as many shared words in a row.
        possible = np.flatnonzero(_longest_runs(texts, in_row) >= run_words)
        texts, rows = texts.take(possible), rows.take(possible)
        keys, first_words = _pair_grams(texts, run_words)
        row_keys, _ = _pair_grams(rows, run_words)
        first_words = first_words[find_sorted(np.sort(row_keys), keys) >= 0]
        weights = np.concatenate([[0.0], np.cumsum(self._word_weights(texts))])
        run_weights = weights[first_words + run_words] - weights[first_words]
        first_words = first_words[run_weights >= MIN_RUN_WEIGHT * run_words]
        shares_run[possible] = np.bincount(texts.text_of(first_words), minlength=len(texts)) > 0
        return shares_run

    def _word_weights(self, words: WordHashes) -> np.ndarray:
        """The weight of each word, by the commonest gram that it is in: float, (words,)."""
        grams, first_words = words.grams(GRAM_WORDS)
        counts = self.gram_counts.lookup(grams)
        highest = np.zeros(len(words.hashes), dtype=np.uint8)
        for word in range(GRAM_WORDS):
            highest[first_words + word] = np.maximum(highest[first_words + word], counts)
        return COMMON_TEXTS / np.maximum(COMMON_TEXTS, highest)


def _rarest_grams(
    grams: np.ndarray, rows: np.ndarray, text_words: np.ndarray, gram_counts: np.ndarray
) -> np.ndarray:
    """Indices of the grams to index: all of a short text, the rarest of each window of others.

    Args:
        grams, rows, gram_counts: each gram, its text, and how many texts have it; (grams,).
        text_words: the length of each text in words, (texts,).
    """
    # Equally rare grams are ordered by hash, which is the same in every text.
    rank = (gram_counts.astype(np.uint64) << np.uint64(56)) | (mix_bits(grams) >> np.uint64(8))
    chosen = (text_words <= SHORT_TEXT_WORDS)[rows]
    windows = np.arange(max(0, len(grams) - WINDOW_GRAMS + 1))
    windows = windows[rows[windows] == rows[windows + WINDOW_GRAMS - 1]]
    rarest = np.argmin(np.stack([rank[windows + i] for i in range(WINDOW_GRAMS)]), axis=0)
    chosen[windows + rarest] = True
    common = gram_counts > COMMON_TEXTS
    rare_in_text = np.bincount(rows[chosen & ~common], minlength=len(text_words))
    return np.flatnonzero(chosen & ~(common & (rare_in_text >= ENOUGH_RARE_GRAMS)[rows]))


def _shared_words(texts: WordHashes, rows: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """Which words of the texts are in grams of their rows, and which of the rows in their texts'.

    Bool, (words of the texts,) and (words of the rows,); text i is paired with row i.
    """
    text_keys, text_words = _pair_grams(texts, GRAM_WORDS)
    row_keys, row_words = _pair_grams(rows, GRAM_WORDS)
    return (
        _covered_words(texts, text_words[find_sorted(np.sort(row_keys), text_keys) >= 0]),
        _covered_words(rows, row_words[find_sorted(np.sort(text_keys), row_keys) >= 0]),
    )


def _pair_grams(words: WordHashes, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of grams that differ between pairs, uint64, (grams,); and each gram's first word."""
    grams, first_words = words.grams(length)
    # The pair is in the top bits, so that lookups of one pair are close together in memory.
    pair = words.text_of(first_words).astype(np.uint64)
    return (pair << np.uint64(40)) | (grams >> np.uint64(24)), first_words


def _covered_words(words: WordHashes, first_words: np.ndarray) -> np.ndarray:
    """Which words are in the grams that begin at these words, bool, (words,)."""
    covered = np.zeros(len(words.hashes), dtype=bool)
    for word in range(GRAM_WORDS):
        covered[first_words + word] = True
    return covered


def _sums_by_text(words: WordHashes, word_values: np.ndarray) -> np.ndarray:
    """The sum of each text's word values, (texts,)."""
    sums = np.concatenate([[0.0], np.cumsum(word_values)])
    return sums[words.starts[1:]] - sums[words.starts[:-1]]


def _longest_runs(words: WordHashes, covered: np.ndarray) -> np.ndarray:
    """The length of the longest run of covered words in each text, int64, (texts,)."""
    ends = np.flatnonzero(covered & np.append(~covered[1:], True))
    starts = np.flatnonzero(covered & np.append(True, ~covered[:-1]))
    # A run ends where its text ends.
    borders = words.starts[1:-1]
    borders = borders[(borders > 0) & (borders < len(covered))]
    borders = borders[covered[borders] & covered[borders - 1]]
    starts, ends = np.union1d(starts, borders), np.union1d(ends, borders - 1)
    longest = np.zeros(len(words), dtype=np.int64)
    np.maximum.at(longest, words.text_of(starts), ends - starts + 1)
    return longest
