"""An index of the queries and answers of evaluation sets, which training texts are matched with.

What counts: a training text is contaminated if it matches a *judged query* or an *answer*: a
passage that is relevant to one. A passage that is searched but answers nothing may be trained on,
because the searched collection is often the one that is trained on; it is just never used as a
negative. In sets that are passed as `whole`, every passage is an answer.

What matches, after NFKC, case folding and without punctuation:

- `copy`: the same words in the same order, however few.
- `contains`, `part`, `edited`: at least `share` of the shorter text's words are in runs of four
  that the longer text has too. `contains` has an evaluation text in a longer text, `part` is a
  piece of one, `edited` is about as long. The shorter text has at least `ngram` words, or
  MIN_CONTAINED_WORDS if the longer has it word for word.
- `overlap`: less is shared, but `ngram` words in a row are (the rule of Brown et al., 2020, arXiv
  2005.14165).
- `edited` again, for texts of up to MAX_SHORT_WORDS: all words but one in any order, and the same
  numbers. Below MIN_CONTAINED_WORDS also MIN_TEXT_SIMILARITY of the characters in common, and
  MIN_TYPO_SIMILARITY of those of a word that became another: with a typo it is the same question,
  but with a synonym in four words it need not be.
- `meaning`: the cosine of two vectors, if an encoder is given.

Phrases that more than `overlap_index.COMMON_TEXTS` texts of the evaluation sets have count less the
more texts have them: a paragraph about the licence in ten thousand descriptions reveals no answer.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

from stillroom.data.cleaning.overlap_index import MAX_POSTINGS, GramCounts, OverlapIndex
from stillroom.data.cleaning.splitmix import mix_bits
from stillroom.data.cleaning.string_array import StringArray
from stillroom.data.cleaning.word_hashes import (
    WordHashes,
    concatenated_ranges,
    find_sorted,
    hash_words,
    split_words,
)
from stillroom.data.readers.records import EvaluationSet

MatchKind = Literal["copy", "edited", "contains", "part", "overlap", "meaning"]
MATCH_KINDS: tuple[MatchKind, ...] = ("copy", "edited", "contains", "part", "overlap", "meaning")
MIN_CONTAINED_WORDS = 8  # shorter texts are not looked for inside others
MAX_SHORT_WORDS = 24  # texts up to this length match if one of their words differs
MIN_TEXT_SIMILARITY = 0.85  # share of the characters of two texts
MIN_TYPO_SIMILARITY = 0.5  # share of the characters of two words
MIN_LENGTH_RATIO = 0.75  # of texts that are about as long
CHUNK_TEXTS = 4096  # compared at a time

# (texts, "query" or "passage") → unit vectors, float, (texts, dims)
EmbedFunction = Callable[[Sequence[str], Literal["query", "passage"]], np.ndarray]


@dataclass(frozen=True)
class Matches:
    """Matches of texts with rows of a `ContaminationIndex`; arrays of shape (matches,).

    Attributes:
        text: index of the text.
        row: row of the index.
        score: the shared fraction, 0 to 1.
        kind: index in MATCH_KINDS.
    """

    text: np.ndarray
    row: np.ndarray
    score: np.ndarray
    kind: np.ndarray

    @staticmethod
    def of_kind(kind: MatchKind, text: np.ndarray, row: np.ndarray, score: np.ndarray) -> "Matches":
        """Matches that are all of one kind."""
        return Matches(text, row, score, np.full(len(text), MATCH_KINDS.index(kind)))

    def take(self, indices: np.ndarray) -> "Matches":
        """Some of the matches."""
        return Matches(*(array[indices] for array in self._arrays()))

    def concatenate(self, other: "Matches") -> "Matches":
        """These matches and then the others."""
        both = zip(self._arrays(), other._arrays(), strict=True)
        return Matches(*(np.concatenate(arrays) for arrays in both))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.text, self.row, self.score, self.kind


@dataclass(frozen=True)
class ContaminationIndex:
    """Judged queries and answers of evaluation sets. All arrays: cheap to pickle and to share.

    Attributes:
        ngram, share: see the module.
        set_names: the evaluation sets.
        row_sets: the set of each row, an index in `set_names`, int16, (rows,).
        is_query: whether each row is a query, else an answer, bool, (rows,).
        ids: the id of each row in its set.
        keys, key_rows: keys of texts, ascending, and the row of each.
        bags, bag_rows: hashes of short texts' bags of words, whole and less one word, ascending,
            and the row of each.
        short_texts: the words of each short text, separated by spaces; empty for longer ones.
        overlap_index: rows by their word n-grams.
        passage_keys: keys of all passages, answers or not, ascending.
        vectors: float32, (rows, dims), if there was an encoder.
    """

    ngram: int
    share: float
    set_names: tuple[str, ...]
    row_sets: np.ndarray
    is_query: np.ndarray
    ids: StringArray
    keys: np.ndarray
    key_rows: np.ndarray
    bags: np.ndarray
    bag_rows: np.ndarray
    short_texts: StringArray
    overlap_index: OverlapIndex
    passage_keys: np.ndarray
    vectors: np.ndarray | None = None

    @staticmethod
    def build(
        evaluation_sets: Mapping[str, EvaluationSet],
        *,
        whole: Collection[str] = (),
        ngram: int = 13,
        share: float = 0.6,
        embed: EmbedFunction | None = None,
    ) -> "ContaminationIndex":
        """Indexes evaluation sets.

        Args:
            whole: sets in which every passage counts as an answer.
            ngram, share: see the module.
            embed: also match by meaning.
        """
        rows = list(_judged_texts(evaluation_sets, whole))
        texts = [text for *_, text in rows]
        is_query = np.array([role == "query" for _, role, _, _ in rows], dtype=bool)
        gram_counts, passage_keys = _scan_passages(evaluation_sets)
        words = hash_words(texts)
        not_empty = np.flatnonzero(words.counts > 0)
        keys, first = np.unique(words.keys[not_empty], return_index=True)
        bags, bag_rows = _bags_of_words(words)
        order = np.argsort(bags, kind="stable")
        short_texts = [
            " ".join(split_words(text)) if count <= MAX_SHORT_WORDS else ""
            for text, count in zip(texts, words.counts, strict=True)
        ]
        names = tuple(evaluation_sets)
        return ContaminationIndex(
            ngram=ngram,
            share=share,
            set_names=names,
            row_sets=np.array([names.index(name) for name, *_ in rows], dtype=np.int16),
            is_query=is_query,
            ids=StringArray.pack([text_id for _, _, text_id, _ in rows]),
            keys=keys,
            key_rows=not_empty[first],
            bags=bags[order],
            bag_rows=bag_rows[order],
            short_texts=StringArray.pack(short_texts),
            overlap_index=OverlapIndex.build(words, gram_counts),
            passage_keys=passage_keys,
            vectors=None if embed is None else embed_by_role(embed, texts, is_query),
        )

    def contains(self, text: str) -> bool:
        """Whether a text copies any passage or matches an answer; see `contains_many`."""
        return bool(self.contains_many([text])[0])

    def contains_many(self, texts: Sequence[str]) -> np.ndarray:
        """Whether each text copies any passage or matches an answer, bool, (texts,)."""
        return self.match_many(texts)[0]

    def touches_many(self, texts: Sequence[str]) -> np.ndarray:
        """As `contains_many`, or whether a text matches a judged query, bool, (texts,)."""
        touched, matches = self.match_many(texts)
        for part in matches:
            touched[part.text] = True
        return touched

    def match_many(self, texts: Sequence[str]) -> tuple[np.ndarray, list[Matches]]:
        """What `contains_many` returns, and all matches, with queries too, in parts."""
        contained = np.zeros(len(texts), dtype=bool)
        parts = []
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = texts[start : start + CHUNK_TEXTS]
            words = hash_words(chunk)
            copies = find_sorted(self.passage_keys, words.keys) >= 0
            contained[start : start + CHUNK_TEXTS] = copies & (words.counts > 0)
            found = self._all_matches(chunk, words)
            matches = Matches(start + found.text, found.row, found.score, found.kind)
            contained[matches.text[~self.is_query[matches.row]]] = True
            parts.append(matches)
        return contained, parts

    def best_matches(
        self, texts: Sequence[str], vectors: np.ndarray | None = None, similarity: float = 1.0
    ) -> Matches:
        """The best match of each text that has any, ordered by text.

        Args:
            vectors: of the texts, (texts, dims), to match by meaning too.
            similarity: the least cosine of such a match.
        """
        matches = self._all_matches(texts, hash_words(texts))
        if vectors is not None and self.vectors is not None:
            matches = matches.concatenate(_meaning_matches(vectors, self.vectors, similarity))
        order = np.lexsort((matches.row, matches.kind, -matches.score, matches.text))
        first = np.unique(matches.text[order], return_index=True)[1]
        return matches.take(order[first])

    def _all_matches(self, texts: Sequence[str], words: WordHashes) -> Matches:
        copies = self._copies(words)
        return copies.concatenate(self._short_edits(texts, words)).concatenate(
            self._overlaps(words)
        )

    def _copies(self, words: WordHashes) -> Matches:
        key = find_sorted(self.keys, words.keys)
        text = np.flatnonzero((key >= 0) & (words.counts > 0))
        return Matches.of_kind("copy", text, self.key_rows[key[text]], np.ones(len(text)))

    def _short_edits(self, texts: Sequence[str], words: WordHashes) -> Matches:
        """Short texts that differ in one word."""
        text, row = self._equal_bags(words)
        text_words = {i: split_words(texts[i]) for i in np.unique(text)}
        similarities = [
            character_similarity(text_words[i], self.short_texts[j].split(" "))
            for i, j in zip(text, row, strict=True)
        ]
        whole, rest = np.array(similarities, dtype=float).reshape(-1, 2).T
        shorter = np.minimum(words.counts[text], self.overlap_index.words.counts[row])
        similar = (whole >= MIN_TEXT_SIMILARITY) & (rest >= MIN_TYPO_SIMILARITY)
        accepted = np.flatnonzero(similar | (shorter >= MIN_CONTAINED_WORDS))
        return Matches.of_kind("edited", text[accepted], row[accepted], whole[accepted])

    def _equal_bags(self, words: WordHashes) -> tuple[np.ndarray, np.ndarray]:
        """Texts and rows that have a bag of words in common, each pair once."""
        bags, text = _bags_of_words(words)
        start = np.searchsorted(self.bags, bags)
        counts = np.minimum(np.searchsorted(self.bags, bags, side="right") - start, MAX_POSTINGS)
        rows = self.bag_rows[concatenated_ranges(start, counts)]
        pairs = np.unique(np.repeat(text, counts) * len(self.is_query) + rows)
        return np.divmod(pairs, max(1, len(self.is_query)))

    def _overlaps(self, words: WordHashes) -> Matches:
        """Texts that share word n-grams: kinds `edited`, `contains`, `part` and `overlap`."""
        overlaps = self.overlap_index.search(words, run_words=self.ngram)
        text_words = words.counts[overlaps.text]
        row_words = self.overlap_index.words.counts[overlaps.row]
        row_is_long_enough = (row_words >= self.ngram) | (
            (row_words >= MIN_CONTAINED_WORDS) & (overlaps.row_share > 0.999)
        )
        contains = (
            row_is_long_enough & (overlaps.row_share >= self.share) & (text_words >= row_words)
        )
        text_is_long_enough = (text_words >= self.ngram) | (
            (text_words >= MIN_CONTAINED_WORDS)
            & (overlaps.text_share > 0.999)
            & (overlaps.word_weight >= 0.5)
        )
        part = text_is_long_enough & (overlaps.text_share >= self.share) & (text_words < row_words)
        shorter, longer = np.minimum(text_words, row_words), np.maximum(text_words, row_words)
        kinds = np.select(
            [(contains | part) & (shorter >= MIN_LENGTH_RATIO * longer), contains, part],
            [MATCH_KINDS.index(kind) for kind in ("edited", "contains", "part")],
            MATCH_KINDS.index("overlap"),
        )
        score = np.where(text_words >= row_words, overlaps.row_share, overlaps.text_share)
        matched = contains | part | overlaps.shares_run
        return Matches(
            overlaps.text[matched], overlaps.row[matched], score[matched], kinds[matched]
        )


def character_similarity(one: Sequence[str], other: Sequence[str]) -> tuple[float, float]:
    """The similarity of two lists of words, independent of order.

    Returns:
        The share of all characters that they have in common; and the same of the words that only
        one of them has, 1 if only one list has such words.
    """
    left = "".join((Counter(one) - Counter(other)).elements())
    right = "".join((Counter(other) - Counter(one)).elements())
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    matched = 2 * sum(block.size for block in blocks)
    size, rest = len("".join(one)) + len("".join(other)), len(left) + len(right)
    return (size - rest + matched) / size, matched / rest if left and right else 1.0


def embed_by_role(embed: EmbedFunction, texts: Sequence[str], is_query: np.ndarray) -> np.ndarray:
    """Unit vectors of texts, queries embedded as queries and the others as passages.

    Of unit length even from a model that dot compares: matches are by cosine.

    Args:
        is_query: bool, (texts,).

    Returns:
        float32, (texts, dims), in the order of the texts.
    """
    by_role: list[tuple[Literal["query", "passage"], np.ndarray]] = [
        ("query", np.flatnonzero(is_query)),
        ("passage", np.flatnonzero(~is_query)),
    ]
    embedded = [
        (rows, embed([texts[i] for i in rows], role)) for role, rows in by_role if len(rows)
    ]
    dims = embedded[0][1].shape[1] if embedded else 0
    vectors = np.zeros((len(texts), dims), dtype=np.float32)
    for rows, role_vectors in embedded:
        lengths = np.linalg.norm(role_vectors, axis=1, keepdims=True)
        vectors[rows] = role_vectors / np.maximum(lengths, 1e-12)
    return vectors


def _judged_texts(
    evaluation_sets: Mapping[str, EvaluationSet], whole: Collection[str]
) -> Iterator[tuple[str, str, str, str]]:
    """(set, role, id, text) of every judged query and answer."""
    for name, evaluation_set in evaluation_sets.items():
        for query_id in evaluation_set.qrels:
            yield name, "query", query_id, evaluation_set.queries[query_id]
        relevant = {
            passage_id: None
            for grades in evaluation_set.qrels.values()
            for passage_id, grade in grades.items()
            if grade > 0
        }
        for passage_id in evaluation_set.passages if name in whole else relevant:
            yield name, "answer", passage_id, evaluation_set.passages[passage_id]


def _scan_passages(
    evaluation_sets: Mapping[str, EvaluationSet],
) -> tuple[GramCounts, np.ndarray]:
    """How many passages have each gram; and the keys of all passages, ascending."""
    collections = [evaluation_set.passages.values() for evaluation_set in evaluation_sets.values()]
    characters = sum(len(text) for passages in collections for text in passages)
    gram_counts = GramCounts(characters // 6)  # characters of a word and a space, about
    keys = [np.zeros(0, dtype=np.uint64)]
    for passages in collections:
        texts = list(passages)
        for start in range(0, len(texts), 2 * CHUNK_TEXTS):
            words = hash_words(texts[start : start + 2 * CHUNK_TEXTS])
            gram_counts.add(words)
            keys.append(words.keys[words.counts > 0])
    return gram_counts, np.unique(np.concatenate(keys))


def _bags_of_words(words: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """Bags of words of texts of 3 to MAX_SHORT_WORDS words: hashes, and the text of each.

    A text has the bag of all its words, and one without each word that is no number: another
    year is another question.
    """
    short = np.flatnonzero((words.counts >= 3) & (words.counts <= MAX_SHORT_WORDS))
    taken, sums = words.take(short), words.bags()[short]
    text = np.repeat(np.arange(len(short)), taken.counts)
    numeric = (taken.hashes & np.uint64(1)).astype(bool)
    without_one = (sums[text] - taken.hashes)[~numeric]
    bags = mix_bits(np.concatenate([sums, without_one]))
    return bags, short[np.concatenate([np.arange(len(short)), text[~numeric]])]


def _meaning_matches(vectors: np.ndarray, row_vectors: np.ndarray, similarity: float) -> Matches:
    """The nearest row of each text, if their cosine is `similarity` or more."""
    best = np.full(len(vectors), -1.0)
    row = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(row_vectors), CHUNK_TEXTS):
        cosines = vectors @ row_vectors[start : start + CHUNK_TEXTS].T
        nearest = cosines.argmax(axis=1)
        cosine = cosines[np.arange(len(vectors)), nearest]
        row = np.where(cosine > best, start + nearest, row)
        best = np.maximum(best, cosine)
    near = np.flatnonzero(best >= similarity)
    return Matches.of_kind("meaning", near, row[near], best[near])
