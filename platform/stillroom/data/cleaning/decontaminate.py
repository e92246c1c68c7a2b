"""Training texts that would give an evaluation set's answers away.

What counts. A pair is contaminated when its query or its passage matches a *judged query* or an
*answer*, which is a passage that is relevant to one. A passage that is searched but answers
nothing may be trained on, for a collection that is searched is often the one that is trained on;
it is only never a negative. In sets that count as a `whole`, every passage is an answer.

What matches, after NFKC, case folding and without punctuation:

- `copy`: the same words in the same order, however few.
- `contains`, `part`, `edited`: of the shorter text's words, the `share` or more lie in runs of
  four that the longer one has too. `contains` holds an evaluation text in a longer one, `part` is
  a piece of one, `edited` is about as long. The shorter has at least `ngram` words, or CONTAINED
  if it is there word for word.
- `overlap`: less than that is shared, but `ngram` words in a row are (Brown et al., 2020, arXiv
  2005.14165, drop so).
- `edited` again, for texts of up to FEW words: all words but one in any order, and the same
  numbers. Of fewer than CONTAINED words also ALIKE or more of their characters, and TYPO or
  more of those of a word that became another: a typo is the same question, and a synonym in
  four words need not be.
- `meaning`: the cosine of two vectors, where an encoder is given.

Phrases that more than `overlap.COMMON` texts of the evaluation sets have count less the more have
them: a paragraph about the licence in ten thousand descriptions gives no answer away.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

from stillroom.data.cleaning.overlap_index import POSTINGS, Index, Seen
from stillroom.data.cleaning.word_hashes import Words, find, mix, offsets, spelled, words_of
from stillroom.data.readers.records import EvaluationSet, Pair

Kind = Literal["copy", "edited", "contains", "part", "overlap", "meaning"]

KINDS: tuple[Kind, ...] = ("copy", "edited", "contains", "part", "overlap", "meaning")

CONTAINED = 8  # words of the shortest text that is looked for inside others

FEW = 24  # words; up to here one of them may differ

ALIKE = 0.85  # of the characters of two texts

TYPO = 0.5  # of the characters of two words

LIKE_LONG = 0.75  # of the longer text's words: from there on, a shared text is no mere part

CHUNK = 4096  # pairs looked at together

# (texts, "query" or "passage") → float vectors of length 1, (texts, dims)
Embed = Callable[[Sequence[str], Literal["query", "passage"]], np.ndarray]


@dataclass(frozen=True)
class Hit:
    """A pair that gives something away.

    Attributes:
        pair: its place among those given.
        what: which of its texts.
        text: that text.
        kind: of match; see the module.
        score: what is shared, 0 to 1.
        set, role, id: the evaluation text.
    """

    pair: int
    what: Literal["query", "passage"]
    text: str
    kind: Kind
    score: float
    set: str
    role: Literal["query", "answer"]
    id: str


@dataclass(frozen=True)
class Strings:
    """Many strings in two arrays, which other processes can map instead of copying."""

    data: np.ndarray  # uint8
    starts: np.ndarray  # int64, (strings + 1,)

    @staticmethod
    def of(strings: Sequence[str]) -> "Strings":
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        return Strings(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets(counts))

    def __getitem__(self, i: int) -> str:
        part = self.data[self.starts[i] : self.starts[i + 1]]
        return part.tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Judged:
    """What evaluation sets ask and answer. Arrays throughout: cheap to pickle, or to share.

    Attributes:
        ngram, share: see the module.
        sets: names.
        set_of, asks, ids: of each row: its set, whether it is a query, its id there.
        keys, key_rows: texts' keys, ascending, and the row that has each.
        bags, bag_rows: bags of short texts less one of their words, ascending, and the rows.
        brief: the words of such short texts, with spaces; of others nothing.
        index: rows by the phrases in them.
        searched: keys of every passage, ascending.
        vectors: of each row, where there was an encoder.
    """

    ngram: int
    share: float
    sets: tuple[str, ...]
    set_of: np.ndarray
    asks: np.ndarray
    ids: Strings
    keys: np.ndarray
    key_rows: np.ndarray
    bags: np.ndarray
    bag_rows: np.ndarray
    brief: Strings
    index: Index
    searched: np.ndarray
    vectors: np.ndarray | None = None

    @staticmethod
    def of(
        evaluation: Mapping[str, EvaluationSet],
        *,
        whole: Collection[str] = (),
        ngram: int = 13,
        share: float = 0.6,
        embed: Embed | None = None,
    ) -> "Judged":
        """Judged queries and their answers.

        Args:
            whole: sets of which every passage counts as an answer.
            embed: also match by meaning.
        """
        rows = list(_rows(evaluation, whole))
        texts = [text for *_, text in rows]
        asks = np.array([role == "query" for _, role, _, _ in rows], dtype=bool)
        passages = [kept.passages.values() for kept in evaluation.values()]
        size = sum(len(text) for of_set in passages for text in of_set)
        seen = Seen(size // 6)
        searched = [np.zeros(0, dtype=np.uint64)]
        for of_set in passages:
            for part in _parts(list(of_set)):
                words = words_of(part)
                seen.add(words)
                searched.append(words.keys[words.counts > 0])
        words = words_of(texts)
        there = np.flatnonzero(words.counts > 0)
        keys, first = np.unique(words.keys[there], return_index=True)
        bags, bag_rows = _bags(words)
        order = np.argsort(bags, kind="stable")
        brief = [
            " ".join(spelled(text)) if count <= FEW else ""
            for text, count in zip(texts, words.counts, strict=True)
        ]
        names = tuple(evaluation)
        return Judged(
            ngram=ngram,
            share=share,
            sets=names,
            set_of=np.array([names.index(name) for name, *_ in rows], dtype=np.int16),
            asks=asks,
            ids=Strings.of([own_id for _, _, own_id, _ in rows]),
            keys=keys,
            key_rows=there[first],
            bags=bags[order],
            bag_rows=bag_rows[order],
            brief=Strings.of(brief),
            index=Index.of(words, seen),
            searched=np.unique(np.concatenate(searched)),
            vectors=None if embed is None else _embedded(embed, texts, asks),
        )

    def holds(self, text: str) -> bool:
        """Whether a text is a passage of a set, or matches an answer; for many, see `held`."""
        return bool(self.held([text])[0])

    def held(self, texts: Sequence[str]) -> np.ndarray:
        """`holds` of each text, bool, (texts,)."""
        held = np.zeros(len(texts), dtype=bool)
        for begin in range(0, len(texts), CHUNK):
            part = texts[begin : begin + CHUNK]
            words = words_of(part)
            copies = find(self.searched, words.keys) >= 0
            held[begin : begin + CHUNK] = copies & (words.counts > 0)
            found = self._matches(part, words)
            held[begin + found.text[~self.asks[found.row]]] = True
        return held

    def match(
        self, texts: Sequence[str], vectors: np.ndarray | None = None, similarity: float = 1.0
    ) -> "Matches":
        """The best match of each text that has any, by text."""
        found = self._matches(texts, words_of(texts))
        if vectors is not None and self.vectors is not None:
            found = found.and_more(_by_meaning(vectors, self.vectors, similarity))
        order = np.lexsort((found.row, found.kind, -found.score, found.text))
        first = np.unique(found.text[order], return_index=True)[1]
        return found.take(order[first])

    def _matches(self, texts: Sequence[str], words: Words) -> "Matches":
        at = find(self.keys, words.keys)
        same = np.flatnonzero((at >= 0) & (words.counts > 0))
        copies = Matches(
            same,
            self.key_rows[at[same]],
            np.ones(len(same)),
            np.full(len(same), KINDS.index("copy")),
        )
        return copies.and_more(self._edited(texts, words)).and_more(self._sharing(words))

    def _edited(self, texts: Sequence[str], words: Words) -> "Matches":
        """Short texts that differ in a word."""
        bags, text = _bags(words)
        low = np.searchsorted(self.bags, bags)
        counts = np.minimum(np.searchsorted(self.bags, bags, side="right") - low, POSTINGS)
        starts = offsets(counts)
        entries = np.arange(starts[-1]) + np.repeat(low - starts[:-1], counts)
        text, row = np.divmod(
            np.unique(np.repeat(text, counts) * len(self.asks) + self.bag_rows[entries]),
            max(1, len(self.asks)),
        )
        own = {i: spelled(texts[i]) for i in np.unique(text)}
        couples = zip(text, row, strict=True)
        found = [alike(own[i], self.brief[j].split(" ")) for i, j in couples]
        scores, of_rest = np.array(found, dtype=float).reshape(-1, 2).T
        least = np.minimum(words.counts[text], self.index.words.counts[row])
        kept = np.flatnonzero(((scores >= ALIKE) & (of_rest >= TYPO)) | (least >= CONTAINED))
        kinds = np.full(len(kept), KINDS.index("edited"))
        return Matches(text[kept], row[kept], scores[kept], kinds)

    def _sharing(self, words: Words) -> "Matches":
        """Texts that share phrases."""
        found = self.index.search(words, in_a_row=self.ngram)
        own, known = words.counts[found.text], self.index.words.counts[found.row]
        enough = (known >= self.ngram) | ((known >= CONTAINED) & (found.of_row > 0.999))
        contains = enough & (found.of_row >= self.share) & (own >= known)
        enough = (own >= self.ngram) | (
            (own >= CONTAINED) & (found.of_text > 0.999) & (found.weight >= 0.5)
        )
        part = enough & (found.of_text >= self.share) & (own < known)
        as_long = np.minimum(own, known) >= LIKE_LONG * np.maximum(own, known)
        kinds = np.select(
            [(contains | part) & as_long, contains, part],
            [KINDS.index(kind) for kind in ("edited", "contains", "part")],
            KINDS.index("overlap"),
        )
        score = np.where(own >= known, found.of_row, found.of_text)
        kept = contains | part | found.in_a_row
        return Matches(found.text[kept], found.row[kept], score[kept], kinds[kept])


@dataclass(frozen=True)
class Matches:
    """Texts, rows of `Judged`, scores and places in KINDS; arrays, (matches,)."""

    text: np.ndarray
    row: np.ndarray
    score: np.ndarray
    kind: np.ndarray

    def take(self, places: np.ndarray) -> "Matches":
        return Matches(*(each[places] for each in self._arrays()))

    def and_more(self, other: "Matches") -> "Matches":
        both = zip(self._arrays(), other._arrays(), strict=True)
        return Matches(*(np.concatenate(arrays) for arrays in both))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.text, self.row, self.score, self.kind


def decontaminate(
    pairs: Sequence[Pair],
    judged: Judged,
    *,
    drop: bool = True,
    embed: Embed | None = None,
    similarity: float = 0.95,
) -> tuple[list[Pair], list[Hit]]:
    """Drops pairs that give a judged query or an answer away, or only names them; takes what is
    tested out of the negatives either way, since it may not be trained *against*.

    Args:
        embed: as given to `Judged.of`; a cosine of `similarity` is a match.

    Returns:
        The pairs left, in order, and the best match of each that was found.
    """
    clean: list[Pair] = []
    hits: list[Hit] = []
    for begin in range(0, len(pairs), CHUNK):
        part = pairs[begin : begin + CHUNK]
        found = list(_hits(part, judged, embed, similarity))
        named = {hit.pair for hit in found}
        hits += [replace(hit, pair=begin + hit.pair) for hit in found]
        left = [pair for i, pair in enumerate(part) if not (drop and i in named)]
        held = iter(judged.held([text for pair in left for text in pair.negatives]).tolist())
        for pair in left:
            free = tuple(text for text in pair.negatives if not next(held))
            clean.append(
                pair if len(free) == len(pair.negatives) else replace(pair, negatives=free)
            )
    return clean, hits


def _hits(
    pairs: Sequence[Pair], judged: Judged, embed: Embed | None, similarity: float
) -> Iterator[Hit]:
    texts = [pair.query for pair in pairs] + [pair.passage for pair in pairs]
    asks = np.arange(len(texts)) < len(pairs)
    vectors = None if embed is None else _embedded(embed, texts, asks)
    best = judged.match(texts, vectors, similarity)
    # One hit a pair: the better of its two.
    order = np.lexsort((best.text, best.kind, -best.score, best.text % max(1, len(pairs))))
    first = np.unique((best.text % max(1, len(pairs)))[order], return_index=True)[1]
    for place in order[first]:
        text, row = int(best.text[place]), int(best.row[place])
        yield Hit(
            pair=text % len(pairs),
            what="query" if asks[text] else "passage",
            text=texts[text],
            kind=KINDS[best.kind[place]],
            score=round(float(best.score[place]), 4),
            set=judged.sets[judged.set_of[row]],
            role="query" if judged.asks[row] else "answer",
            id=judged.ids[row],
        )


def alike(one: Sequence[str], other: Sequence[str]) -> tuple[float, float]:
    """The share of characters that two lists of words have in common, whatever their order; and
    the same of the words that only one of them has, 1 where only one has any."""
    left = "".join((Counter(one) - Counter(other)).elements())
    right = "".join((Counter(other) - Counter(one)).elements())
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    matched = 2 * sum(block.size for block in blocks)
    size, rest = len("".join(one)) + len("".join(other)), len(left) + len(right)
    return (size - rest + matched) / size, matched / rest if left and right else 1.0


def _rows(
    evaluation: Mapping[str, EvaluationSet], whole: Collection[str]
) -> Iterator[tuple[str, str, str, str]]:
    """(set, role, id, text) of all that may not be given away."""
    for name, kept in evaluation.items():
        for own_id in kept.qrels:
            yield name, "query", own_id, kept.queries[own_id]
        relevant = {p: None for one in kept.qrels.values() for p, grade in one.items() if grade > 0}
        for own_id in kept.passages if name in whole else relevant:
            yield name, "answer", own_id, kept.passages[own_id]


def _bags(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Of texts of 3 to FEW words: the sum of all, and of all but one; and the text of each.

    Numbers are never left out: another year is another question.
    """
    short = np.flatnonzero((words.counts >= 3) & (words.counts <= FEW))
    taken, sums = words.take(short), words.bags()[short]
    text = np.repeat(np.arange(len(short)), taken.counts)
    numeric = (taken.hashes & np.uint64(1)).astype(bool)
    less_one = (sums[text] - taken.hashes)[~numeric]
    bags = mix(np.concatenate([sums, less_one]))
    return bags, short[np.concatenate([np.arange(len(short)), text[~numeric]])]


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(texts), 2 * CHUNK):
        yield texts[begin : begin + 2 * CHUNK]


def _embedded(embed: Embed, texts: Sequence[str], asks: np.ndarray) -> np.ndarray:
    """Queries as queries and passages as passages, in the texts' order."""
    groups: list[tuple[Literal["query", "passage"], np.ndarray]] = [
        ("query", np.flatnonzero(asks)),
        ("passage", np.flatnonzero(~asks)),
    ]
    made = [(where, embed([texts[i] for i in where], kind)) for kind, where in groups if len(where)]
    dims = made[0][1].shape[1] if made else 0
    vectors = np.zeros((len(texts), dims), dtype=np.float32)
    for where, of_kind in made:
        vectors[where] = of_kind
    return vectors


def _by_meaning(vectors: np.ndarray, known: np.ndarray, similarity: float) -> Matches:
    """The nearest row of each text, where it is near enough."""
    best = np.full(len(vectors), -1.0)
    row = np.zeros(len(vectors), dtype=np.int64)
    for begin in range(0, len(known), CHUNK):
        cosines = vectors @ known[begin : begin + CHUNK].T
        nearest = cosines.argmax(axis=1)
        cosine = cosines[np.arange(len(vectors)), nearest]
        row = np.where(cosine > best, begin + nearest, row)
        best = np.maximum(best, cosine)
    near = np.flatnonzero(best >= similarity)
    return Matches(near, row[near], best[near], np.full(len(near), KINDS.index("meaning")))
