"""BM25: the lexical baseline that embedders are compared with, and a miner of negatives.

Lucene's BM25 (k1 1.5, b .75; Kamphuis et al., ECIR 2020) over the terms of an `Analyser`. An index
may be in pieces, on several machines: a piece gives its share of the statistics, and with those of
all pieces every passage gets the score that it has in a single index, bit for bit.

Terms are found by 64-bit hashes: among ten million, two collide once in 400,000 indexes.
"""

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stillroom.data.cleaning.text_keys import hash_texts
from stillroom.data.text.analyser import Analyser
from stillroom.errors import UserError
from stillroom.mining.exact import TopK, merge_top_k

K1, B = 1.5, 0.75
PIECE_ROWS = 1 << 16  # passages of a piece of an index


class Bm25Statistics(NamedTuple):
    """How much text there is.

    Attributes:
        terms: of all passages together.
    """

    passages: int
    terms: int

    @classmethod
    def total(cls, parts: Iterable["Bm25Statistics"]) -> "Bm25Statistics":
        """Of all parts together.

        Raises:
            UserError: when the passages contain no words.
        """
        passages, terms = map(sum, zip(*parts, strict=True))
        if not terms:
            raise UserError("passages", "have no word that BM25 can index", "Leave BM25 out")
        return cls(passages, terms)


@dataclass(frozen=True)
class QueryTerms:
    """The terms of some queries.

    Attributes:
        hashes: of all their terms, each once: uint64, (terms,).
        queries: of each query its terms in order, as places in `hashes`.
    """

    hashes: np.ndarray
    queries: list[np.ndarray]


class Analysers(dict[str, Analyser]):
    """Language → its analyser, made on first use."""

    def __missing__(self, language: str) -> Analyser:
        analyser = self[language] = Analyser(language)
        return analyser

    def query_terms(self, queries: Sequence[str], languages: Sequence[str]) -> QueryTerms:
        """The terms of queries, by the language of each."""
        numbers: dict[str, int] = {}
        of_queries = [
            np.array(
                [numbers.setdefault(term, len(numbers)) for term in self[language].terms(text)],
                dtype=np.int64,
            )
            for text, language in zip(queries, languages, strict=True)
        ]
        return QueryTerms(hash_texts(numbers), of_queries)


@dataclass(frozen=True)
class Bm25Piece:
    """The index of neighbouring passages.

    Attributes:
        hashes: of the terms that they have, ascending, uint64.
        starts: of each term's postings, and the end of the last, int64.
        passages: of each posting, counted from the first of the piece, int32; ascending for a term.
        counts: how often that passage has that term, int32.
        lengths: terms of each passage, int32.
    """

    hashes: np.ndarray
    starts: np.ndarray
    passages: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(
        cls, texts: Iterable[str], languages: Iterable[str], analysers: Analysers
    ) -> "Bm25Piece":
        """Indexes passages."""
        numbers: dict[str, int] = {}
        terms, counts, distinct, lengths = (array("i") for _ in range(4))
        for text, language in zip(texts, languages, strict=True):
            found = Counter(analysers[language].terms(text))
            terms.extend(numbers.setdefault(term, len(numbers)) for term in found)
            counts.extend(found.values())
            distinct.append(len(found))
            lengths.append(found.total())
        hashes = hash_texts(numbers)
        by_hash = np.argsort(hashes)
        place = np.empty_like(by_hash)
        place[by_hash] = np.arange(len(by_hash))
        places = place[np.array(terms, dtype=np.int32)]
        order = np.argsort(places, kind="stable")
        passages = np.repeat(np.arange(len(lengths), dtype=np.int32), distinct)
        sizes = np.bincount(places, minlength=len(hashes))
        return cls(
            hashes[by_hash],
            np.concatenate([[0], np.cumsum(sizes)]),
            passages[order],
            np.array(counts, dtype=np.int32)[order],
            np.array(lengths, dtype=np.int32),
        )

    def on_disk(self) -> "Bm25Piece":
        """The same in a file that is mapped, and that ends with this process."""
        return Bm25Piece(*(_mapped(getattr(self, field.name)) for field in fields(self)))

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """The place of each term in `hashes` of the piece, int64; -1 where it has none."""
        places = np.searchsorted(self.hashes, hashes)
        places[places == len(self.hashes)] = 0
        has = self.hashes[places] == hashes if len(self.hashes) else np.zeros(len(hashes), bool)
        return np.where(has, places, -1)

    def frequencies(self, hashes: np.ndarray) -> np.ndarray:
        """How many of the passages have each term, int64."""
        places = self.places(hashes)
        sizes = np.append(np.diff(self.starts), 0)  # the last is of a term that is not here
        return sizes[places]


class _Postings(dict[int, tuple[np.ndarray, np.ndarray]]):
    """Number of a term → the passages of a piece that have it, and what it adds to the score of
    each, float32; computed on first use."""

    def __init__(self, piece: Bm25Piece, weighted: "WeightedTerms"):
        self.piece, self.weights = piece, weighted.weights
        self.places = piece.places(weighted.terms.hashes)
        self.length_p = K1 * ((1 - B) + B * piece.lengths / weighted.mean_length)

    def __missing__(self, term: int) -> tuple[np.ndarray, np.ndarray]:
        place = self.places[term]
        span = slice(0) if place < 0 else slice(*self.piece.starts[place : place + 2])
        passages, counts = self.piece.passages[span], self.piece.counts[span].astype(np.float64)
        gains = float(self.weights[term]) * (counts / (self.length_p[passages] + counts))
        self[term] = postings = passages, gains.astype(np.float32)
        return postings


@dataclass(frozen=True)
class WeightedTerms:
    """The terms of some queries, and what they weigh in the whole index.

    Attributes:
        weights: of each term, float32.
        mean_length: terms of a passage.
    """

    terms: QueryTerms
    weights: np.ndarray
    mean_length: float

    @classmethod
    def of(
        cls, terms: QueryTerms, statistics: Bm25Statistics, frequencies: np.ndarray
    ) -> "WeightedTerms":
        """By the statistics of the whole index, and how many of its passages have each term."""
        others = statistics.passages - frequencies
        weights = np.log(1 + (others + 0.5) / (frequencies + 0.5)).astype(np.float32)
        return cls(terms, weights, statistics.terms / statistics.passages)


class Bm25Index:
    """An index of neighbouring passages: of all, or of one machine's share.

    Args:
        rows: of the passages.
        on_disk: in files of this machine that are mapped, so that memory holds one piece.
    """

    def __init__(
        self,
        passages: Sequence[str],
        languages: Sequence[str],
        rows: range,
        *,
        on_disk: bool = False,
    ):
        analysers = Analysers()
        self.pieces: dict[int, Bm25Piece] = {}  # by their first row
        for first in rows[::PIECE_ROWS]:
            span = slice(first, min(first + PIECE_ROWS, rows.stop))
            piece = Bm25Piece.of(passages[span], languages[span], analysers)
            self.pieces[first] = piece.on_disk() if on_disk else piece

    @property
    def statistics(self) -> Bm25Statistics:
        """Of the passages that are here."""
        lengths = [piece.lengths for piece in self.pieces.values()]
        return Bm25Statistics(sum(map(len, lengths)), sum(int(part.sum()) for part in lengths))

    def frequencies(self, hashes: np.ndarray) -> np.ndarray:
        """How many of the passages that are here have each term, int64."""
        counts = np.zeros(len(hashes), dtype=np.int64)
        for piece in self.pieces.values():
            counts += piece.frequencies(hashes)
        return counts

    def search(self, weighted: WeightedTerms, k: int) -> TopK:
        """The best passages that are here for each query; -inf and row -1 where no word is shared.

        Of passages with the same score, the earlier is the better.
        """
        results = [_search(piece, first, weighted, k) for first, piece in self.pieces.items()]
        return merge_top_k(results, k)

    def scores(self, weighted: WeightedTerms, rows_qk: np.ndarray) -> np.ndarray:
        """Scores of passages for each query, float32 (q, k); -inf for rows that are not here."""
        scores_qk = np.full(rows_qk.shape, -np.inf, dtype=np.float32)
        for first, piece in self.pieces.items():
            is_here = (rows_qk >= first) & (rows_qk < first + len(piece.lengths))
            scores_qk[is_here] = 0
            postings = _Postings(piece, weighted)
            for query in np.flatnonzero(is_here.any(1)).tolist():
                columns = np.flatnonzero(is_here[query])
                rows = rows_qk[query, columns] - first
                for term in weighted.terms.queries[query].tolist():
                    passages, gains = postings[term]
                    if len(passages):
                        at = np.minimum(np.searchsorted(passages, rows), len(passages) - 1)
                        has = passages[at] == rows
                        scores_qk[query, columns[has]] += gains[at[has]]
        return scores_qk


def _search(piece: Bm25Piece, first: int, weighted: WeightedTerms, k: int) -> TopK:
    queries = weighted.terms.queries
    rows_qk = np.full((len(queries), k), -1, dtype=np.int64)
    scores_qk = np.full((len(queries), k), -np.inf, dtype=np.float32)
    postings = _Postings(piece, weighted)
    for query, terms in enumerate(queries):
        score_p = np.zeros(len(piece.lengths), dtype=np.float32)
        for term in terms.tolist():
            passages, gains = postings[term]
            score_p[passages] += gains
        candidates = np.flatnonzero(score_p > 0)
        if len(candidates) > k:  # only passages as good as the k-th are sorted
            scores = score_p[candidates]
            candidates = candidates[scores >= np.partition(scores, -k)[-k]]
        best = candidates[np.argsort(-score_p[candidates], kind="stable")[:k]]
        rows_qk[query, : len(best)] = first + best
        scores_qk[query, : len(best)] = score_p[best]
    return scores_qk, rows_qk


class Bm25:
    """An index in this process.

    Args:
        passages: the texts to search.
        languages: of each passage.

    Raises:
        UserError: when the passages contain no words.
    """

    def __init__(self, passages: Sequence[str], languages: Sequence[str]):
        self.index = Bm25Index(passages, languages, range(len(passages)))
        self.statistics = Bm25Statistics.total([self.index.statistics])
        self._analysers = Analysers()

    def search(
        self, queries: Sequence[str], languages: Sequence[str], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best passages of each query.

        Args:
            languages: of each query.
            k: how many passages.

        Returns:
            Passage rows, int64 (q, k), best first, -1 where no word is shared; their scores,
            float32, 0 there.
        """
        terms = self._analysers.query_terms(queries, languages)
        frequencies = self.index.frequencies(terms.hashes)
        weighted = WeightedTerms.of(terms, self.statistics, frequencies)
        scores, rows = self.index.search(weighted, k)
        return rows, np.where(rows >= 0, scores, np.float32(0))


def _mapped(numbers: np.ndarray) -> np.ndarray:
    """The same numbers in a mapped file, whose name is gone: it ends with this process."""
    if not numbers.size:
        return numbers
    with tempfile.NamedTemporaryFile() as file:
        numbers.tofile(file)
        file.flush()
        with pa.memory_map(file.name) as mapped:  # keeps no file descriptor, unlike NumPy's
            return np.frombuffer(mapped.read_buffer(), numbers.dtype).reshape(numbers.shape)
