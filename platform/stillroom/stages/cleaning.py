"""The passes that clean a corpus: over shards of Parquet on disk, and over ranges of hashes.

A text is read and normalised shard by shard. What has to be compared over shards goes out as
sorted runs of hashes, of which a process reads one range at a time. So memory holds a shard, a
range, and a byte for every row, whose verdict that is; the rest lies on disk. Rows are numbered
in the order of the recipe's sources and files, and whatever is found again, the first stays.
"""

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.config import Kind
from stillroom.stages import sources
from stillroom.stages.sources import Part
from stillroom.stages.spread import over
from stillroom.text import near_dedupe
from stillroom.text.decontaminate import Judged, decontaminate
from stillroom.text.dedupe import NEAR, hashes, mix, normalise, repeated
from stillroom.text.formats import Pair
from stillroom.text.sorted_runs import Range, SortedRuns, ranges
from stillroom.text.split import last_drawn, lots

HELD_OUT = "held-out"


class Verdict(IntEnum):
    """What became of a row: a pair, a negative of one, a passage or a conversation."""

    KEPT = 0
    QUERY_IS_PASSAGE = 1
    REPEATED_PASSAGES = 2
    REPEATED_QUERIES = 3
    NEAR_COPIES = 4
    HELD_OUT = 5
    CONTAMINATED = 6
    BEYOND_MAX_PAIRS = 7
    POSITIVE = 8  # a negative that is its own pair's positive
    CONFLICTS = 9  # a negative that is the positive of the same query in another pair
    REPEATED = 10
    TESTED = 11
    OF_DROPPED_PAIRS = 12


REASONS: dict[str, tuple[Verdict, ...]] = {
    "pairs": tuple(v for v in Verdict if 0 < v <= Verdict.BEYOND_MAX_PAIRS),
    "negatives": (
        Verdict.OF_DROPPED_PAIRS, Verdict.POSITIVE, Verdict.CONFLICTS, Verdict.REPEATED,
        Verdict.TESTED,
    ),
    "passages": (Verdict.TESTED, Verdict.REPEATED, Verdict.NEAR_COPIES),
    "conversations": (Verdict.TESTED, Verdict.REPEATED),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much a process holds at a time. What comes out does not depend on it."""

    rows: int = 1 << 15  # of a shard
    characters: int = 1 << 25  # of a shard
    records: int = 1 << 20  # of a range
    small: int = 1 << 26  # bytes to read, with no more of which one process is the fastest


@dataclass(frozen=True)
class Shard:
    """Rows of one part: a Parquet file, and how many rows and negatives come before it."""

    path: Path
    kind: Kind
    source: int
    rows: int
    negatives: int
    first: int = 0
    first_negative: int = 0

    @property
    def name(self) -> str:
        return f"{self.first:015d}"

    @property
    def span(self) -> slice:
        return slice(self.first, self.first + self.rows)

    @property
    def negative_span(self) -> slice:
        return slice(self.first_negative, self.first_negative + self.negatives)


@dataclass(frozen=True)
class Work:
    """Where a corpus is cleaned, in what portions, and whether on more than one core."""

    folder: Path
    sizes: Sizes
    spread: bool

    def runs(self, name: str) -> SortedRuns:
        return SortedRuns(self.folder / name)

    def verdicts(self, kind: str) -> np.ndarray:
        """A byte for each row, which every process sees and may set."""
        return np.load(self.folder / f"{kind}.npy", mmap_mode="r+")

    def over(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return over(functools.partial(function, self), items, spread=self.spread)

    def over_hashes(self, function: Callable[[Any], Any], name: str, **given: Any) -> list[Any]:
        found = self.runs(name).hash_ranges(self.sizes.records)
        return self.over(functools.partial(function, name=name, **given), found)


# --- reading --------------------------------------------------------------------------------


def read(work: Work, parts: Sequence[tuple[int, Part]]) -> dict[str, list[Shard]]:
    """Every part's rows as shards, in order, and nobody's verdict yet.

    Args:
        parts: each with the number of its source.
    """
    numbered = [(number, source, part) for number, (source, part) in enumerate(parts)]
    found = list(itertools.chain.from_iterable(work.over(_read, numbered)))
    shards: dict[str, list[Shard]] = {"pairs": [], "passages": [], "conversations": []}
    for kind, of_kind in shards.items():
        rows = negatives = 0
        for shard in found:
            if shard.kind == kind:
                of_kind.append(replace(shard, first=rows, first_negative=negatives))
                rows, negatives = rows + shard.rows, negatives + shard.negatives
        np.save(work.folder / f"{kind}.npy", np.zeros(max(rows, 1), dtype=np.uint8))
        if kind == "pairs":
            np.save(work.folder / "negatives.npy", np.zeros(max(negatives, 1), dtype=np.uint8))
    return shards


def _read(work: Work, item: tuple[int, int, Part]) -> list[Shard]:
    number, source, part = item
    readers: dict[Kind, Callable[[Part], Iterable[Any]]] = {
        "pairs": sources.pairs,
        "passages": sources.passages,
        "conversations": sources.conversations,
    }
    found = []
    for kind, reader in readers.items():
        for place, rows in enumerate(_portions(reader(part), work.sizes)):
            path = work.folder / f"{kind}-{number:05d}-{place:06d}.parquet"
            table = _TABLES[kind](rows)
            pq.write_table(table, path, compression="lz4", use_dictionary=False)
            negatives = sum(len(row.negatives) for row in rows) if kind == "pairs" else 0
            found.append(Shard(path, kind, source, len(rows), negatives))
    return found


def _portions(rows: Iterable[Any], sizes: Sizes) -> Iterator[list[Any]]:
    portion: list[Any] = []
    characters = 0
    for row in rows:
        portion.append(row)
        characters += _characters(row)
        if len(portion) >= sizes.rows or characters >= sizes.characters:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _characters(row: Any) -> int:
    if isinstance(row, str):
        return len(row)
    if isinstance(row, Pair):
        return len(row.query) + len(row.passage) + sum(map(len, row.negatives))
    return len(row.prompt) + len(row.completion)


_TABLES: dict[Kind, Callable[[list[Any]], pa.Table]] = {
    "pairs": lambda rows: pa.table(
        {
            "query": pa.array([row.query for row in rows], pa.string()),
            "passage": pa.array([row.passage for row in rows], pa.string()),
            "negatives": pa.array([row.negatives for row in rows], pa.list_(pa.string())),
        }
    ),
    "passages": lambda rows: pa.table({"passage": pa.array(rows, pa.string())}),
    "conversations": lambda rows: pa.table(
        {
            name: pa.array([getattr(row, name) for row in rows], pa.string())
            for name in ("prompt", "completion", "question")
        }
    ),
}


# --- what is the same -----------------------------------------------------------------------


def dedupe(work: Work, shards: Sequence[Shard], *, beginnings_of: int | None = None) -> None:
    """Of pairs with one passage the first stays; of those left with one query, the first.

    A query with two passages would make a right answer count as a negative. And a negative
    that another pair has as the same query's positive is taken out of its pair's.

    Args:
        beginnings_of: source of whose pairs `hold_out` needs the beginnings.
    """
    with_negatives = any(shard.negatives for shard in shards)
    hashed = functools.partial(
        _hash_pairs, with_negatives=with_negatives, beginnings_of=beginnings_of
    )
    work.over(hashed, shards)
    work.over_hashes(_drop_repeated, "of-passages", verdict=Verdict.REPEATED_PASSAGES)
    work.over_hashes(_drop_repeated, "of-queries", verdict=Verdict.REPEATED_QUERIES)
    if with_negatives:
        work.over_hashes(_drop_conflicts, "of-queries-asked")


def _hash_pairs(work: Work, shard: Shard, *, with_negatives: bool, beginnings_of: Any) -> None:
    table = pq.read_table(shard.path)
    passages = [normalise(text) for text in table["passage"].to_pylist()]
    query = hashes(normalise(text) for text in table["query"].to_pylist())
    passage = hashes(passages)
    rows = np.arange(shard.first, shard.first + shard.rows, dtype=np.uint64)
    np.save(work.folder / f"hashes-{shard.name}.npy", np.stack([query, passage]))
    same = query == passage
    work.verdicts("pairs")[shard.span][same] = Verdict.QUERY_IS_PASSAGE
    work.runs("of-passages").write(shard.name, passage[~same], rows[~same])
    work.runs("of-queries").write(shard.name, query[~same], rows[~same])
    if shard.source == beginnings_of:
        beginning = hashes(text[:NEAR] for text in passages)
        work.runs("of-beginnings").write(shard.name, beginning, rows)
    if not with_negatives:
        return
    work.runs("of-queries-asked").write(shard.name, query, rows, passage)
    negative = hashes(map(normalise, _flat(table).to_pylist()))
    np.save(work.folder / f"negatives-{shard.name}.npy", negative)
    owner = owners(table)
    verdicts = work.verdicts("negatives")[shard.negative_span]
    verdicts[_repeated_within(owner, negative)] = Verdict.REPEATED
    verdicts[negative == passage[owner]] = Verdict.POSITIVE
    numbers = np.arange(shard.negative_span.start, shard.negative_span.stop, dtype=np.uint64)
    left = verdicts == 0
    work.runs("of-negatives").write(shard.name, query[owner][left], numbers[left], negative[left])


def _drop_repeated(
    work: Work, keys: Range, *, name: str, verdict: Verdict, kind: str = "pairs"
) -> None:
    verdicts = work.verdicts(kind)
    hashed, rows = work.runs(name).read(keys)[:2]
    left = verdicts[rows] == 0
    hashed, rows = hashed[left], rows[left]
    verdicts[rows[repeated(hashed)]] = verdict


def _drop_conflicts(work: Work, keys: Range, *, name: str) -> None:
    query, _, passage = work.runs(name).read(keys)[:3]
    asked, numbers, negative = work.runs("of-negatives").read(keys)[:3]
    conflict = np.isin(mix(asked) ^ negative, mix(query) ^ passage)
    work.verdicts("negatives")[numbers[conflict]] = Verdict.CONFLICTS


def _repeated_within(owner: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Places of the keys that their owner has had before."""
    order = np.lexsort((np.arange(len(keys)), keys, owner))
    owner, keys = owner[order], keys[order]
    return order[repeated(owner) & repeated(keys)]


# --- what is nearly the same ----------------------------------------------------------------


def drop_near_copies(work: Work, shards: Sequence[Shard], similarity: float, *, pairs: int) -> None:
    """Drops rows whose passage is a near-copy of that of a row before them, which stays.

    Args:
        shards: all pairs; or all passages, after the pairs, each of which comes before them.
        pairs: how many were read.
    """
    if not shards:
        return
    kind = shards[0].kind
    first = 0 if kind == "pairs" else pairs
    work.over(functools.partial(_sketch, first=first, similarity=similarity), shards)
    found = {"copies": f"copies-of-{kind}", "first": first, "pairs": pairs}
    work.over_hashes(_find_copies, "bands", similarity=similarity, **found)
    verdicts = memoryview(work.verdicts(kind))
    for rows in ranges(first, first + len(verdicts), work.sizes.records):
        later, earlier = work.runs(f"copies-of-{kind}").read(rows)[:2].astype(np.int64) - first
        for row, before in zip(later.tolist(), earlier.tolist(), strict=True):
            # One that is dropped itself is nobody's original: copies of copies may be far apart.
            if not verdicts[row] and (before < 0 or not verdicts[before]):
                verdicts[row] = Verdict.NEAR_COPIES


def _sketch(work: Work, shard: Shard, *, first: int, similarity: float) -> None:
    kept = np.flatnonzero(work.verdicts(shard.kind)[shard.span] == 0)
    passages = pq.read_table(shard.path, columns=["passage"])["passage"].take(kept)
    signatures = near_dedupe.signatures(passages.to_pylist())
    keys = near_dedupe.bands(signatures, similarity)
    rows = (first + shard.first + kept).repeat(keys.shape[1])
    sketches = near_dedupe.sketches(signatures).repeat(keys.shape[1], axis=0)
    work.runs("bands").write(f"{shard.kind}-{shard.name}", keys.reshape(-1), rows, *sketches.T)


def _find_copies(
    work: Work, keys: Range, *, name: str, copies: str, first: int, pairs: int, similarity: float
) -> None:
    band, rows, *sketch = work.runs(name).read(keys)
    of_passages = rows >= pairs
    left = np.empty(len(rows), dtype=bool)
    left[~of_passages] = work.verdicts("pairs")[rows[~of_passages]] == 0
    left[of_passages] = work.verdicts("passages")[rows[of_passages] - np.uint64(pairs)] == 0
    later, earlier = near_dedupe.copies(
        band[left], rows[left], np.stack(sketch, axis=1)[left], similarity
    )
    asked = later >= first
    work.runs(copies).write(f"{keys[0]:020d}", later[asked], earlier[asked])


# --- what is tested -------------------------------------------------------------------------


def hold_out(work: Work, shards: Sequence[Shard], passages: int, seed: int) -> list[Pair] | int:
    """Draws so many passages by lot for a test set, and drops every pair that begins like one.

    Returns:
        Their pairs, by lot; or how many distinct passages there are, where it leaves none.
    """
    drawn = work.over_hashes(_draw, "of-beginnings", most=passages, seed=seed)
    distinct = sum(count for count, _ in drawn)
    if distinct <= passages:
        return distinct
    lot, beginning, rows = np.concatenate([best for _, best in drawn], axis=1)
    order = np.argsort(lot)[:passages]
    work.over_hashes(_drop_beginnings, "of-beginnings", tested=np.sort(beginning[order]))
    chosen = rows[order].astype(np.int64)
    found: dict[int, Pair] = {}
    for shard in shards:
        mine = chosen[(chosen >= shard.first) & (chosen < shard.first + shard.rows)]
        if len(mine):
            table = pq.read_table(shard.path, columns=["query", "passage"]).take(mine - shard.first)
            texts = zip(table["query"].to_pylist(), table["passage"].to_pylist(), strict=True)
            found |= {row: Pair(*pair) for row, pair in zip(mine.tolist(), texts, strict=True)}
    return [found[row] for row in chosen.tolist()]


def _draw(work: Work, keys: Range, *, name: str, most: int, seed: int) -> tuple[int, np.ndarray]:
    beginning, rows = work.runs(name).read(keys)[:2]
    left = work.verdicts("pairs")[rows] == 0
    beginning, rows = beginning[left], rows[left]
    first = ~repeated(beginning)
    found = np.stack([lots(beginning[first], seed), beginning[first], rows[first]])
    return found.shape[1], found[:, np.argsort(found[0])[:most]]


def _drop_beginnings(work: Work, keys: Range, *, name: str, tested: np.ndarray) -> None:
    beginning, rows = work.runs(name).read(keys)[:2]
    verdicts = work.verdicts("pairs")
    rows = rows[np.isin(beginning, tested)]
    verdicts[rows[verdicts[rows] == 0]] = Verdict.HELD_OUT


def drop_tested(work: Work, shards: Iterable[Shard], judged: Judged) -> None:
    """Drops what gives an answer of an evaluation set away, of any kind."""
    file = work.folder / "judged.pickle"
    file.write_bytes(pickle.dumps(judged))
    work.over(functools.partial(_drop_tested, token=str(file.stat().st_mtime_ns)), [*shards])


@functools.lru_cache(maxsize=1)
def _judged(path: Path, token: str) -> Judged:
    """Once a process. The token tells it from that of an earlier corpus in the same place."""
    found: Judged = pickle.loads(path.read_bytes())
    return found


def _drop_tested(work: Work, shard: Shard, *, token: str) -> None:
    judged = _judged(work.folder / "judged.pickle", token)
    table = pq.read_table(shard.path)
    verdicts = work.verdicts(shard.kind)[shard.span]
    if shard.kind == "passages":
        verdicts[[judged.holds(text) for text in table["passage"].to_pylist()]] = Verdict.TESTED
        return
    if shard.kind == "conversations":
        texts = zip(table["question"].to_pylist(), table["completion"].to_pylist(), strict=True)
        for hit in decontaminate([Pair(*pair) for pair in texts], judged)[1]:
            verdicts[hit.pair] = Verdict.TESTED
        told = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
        keys = hashes(normalise(f"{prompt}\n{completion}") for prompt, completion in told)
        rows = np.arange(shard.span.start, shard.span.stop, dtype=np.uint64)
        work.runs("of-conversations").write(shard.name, keys, rows)
        return
    kept = np.flatnonzero(verdicts == 0)
    of_negatives = work.verdicts("negatives")[shard.negative_span]
    starts = np.asarray(table["negatives"].combine_chunks().offsets)
    table = table.take(kept)
    columns = (table[name].to_pylist() for name in ("query", "passage", "negatives"))
    rows = [Pair(query, passage, tuple(own)) for query, passage, own in zip(*columns, strict=True)]
    clean, hits = decontaminate(rows, judged)
    dropped = {hit.pair: hit.set for hit in hits}
    for place, name in dropped.items():
        held_out = name == HELD_OUT
        verdicts[kept[place]] = Verdict.HELD_OUT if held_out else Verdict.CONTAMINATED
    left = (place for place in range(len(rows)) if place not in dropped)
    for place, pair in zip(left, clean, strict=True):
        if len(pair.negatives) < len(rows[place].negatives):
            for number, text in enumerate(rows[place].negatives, start=starts[kept[place]]):
                if text not in pair.negatives and of_negatives[number] == 0:
                    of_negatives[number] = Verdict.TESTED


def drop_repeated_conversations(work: Work) -> None:
    work.over_hashes(
        _drop_repeated, "of-conversations", verdict=Verdict.REPEATED, kind="conversations"
    )


# --- how many -------------------------------------------------------------------------------


def sample(work: Work, shards: Sequence[Shard], most: int, seed: int) -> None:
    """Keeps so many of a source's pairs, drawn by lot."""
    verdicts = work.verdicts("pairs")
    if sum(int((verdicts[shard.span] == 0).sum()) for shard in shards) <= most:
        return

    def of(shard: Shard) -> np.ndarray:
        return lots(np.load(work.folder / f"hashes-{shard.name}.npy")[0], seed)

    last = last_drawn(lambda: (of(shard)[verdicts[shard.span] == 0] for shard in shards), most)
    for shard in shards:
        own = verdicts[shard.span]
        own[(own == 0) & (of(shard) > last)] = Verdict.BEYOND_MAX_PAIRS


# --- numbers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbered:
    """Which row of passages.parquet each text has.

    The positives of the pairs come first, and their number is their pair's. After them stand the
    other texts, negatives before passages, each where it first occurs.

    Attributes:
        pairs: how many are kept.
        negatives: how many there are before any is dropped.
    """

    runs: SortedRuns
    pairs: int
    negatives: int

    def of(self, places: slice, *, passages: bool = False) -> np.ndarray:
        """Place, number and whether it is the text's first, (3, found), for negatives or passages.

        Args:
            places: among all negatives or passages that were read.
        """
        shift = self.pairs + (self.negatives if passages else 0)
        found = self.runs.read((places.start + shift, places.stop + shift))[:3].astype(np.int64)
        found[0] -= places.start + shift
        return found


def number(work: Work, shards: dict[str, list[Shard]]) -> Numbered:
    """Numbers the kept texts, and drops passages that are there already."""
    of_pairs, of_passages = shards["pairs"], shards["passages"]
    verdicts = work.verdicts("pairs")
    pairs = 0
    firsts = []
    for shard in of_pairs:
        firsts.append((shard, pairs))
        pairs += int((verdicts[shard.span] == 0).sum())
    negatives = sum(shard.negatives for shard in of_pairs)
    passages = sum(shard.rows for shard in of_passages)
    found = Numbered(work.runs("numbers"), pairs, negatives)
    if not negatives and not passages:  # every text is a positive
        return found
    work.over(functools.partial(_place_pairs, pairs=pairs), firsts)
    work.over(functools.partial(_place_passages, shift=pairs + negatives), of_passages)
    # Texts have a hash in common; the first of them leads. Then, by leaders, they are counted.
    end, width = pairs + negatives + passages, work.sizes.records
    new = work.over_hashes(_find_leaders, "of-texts", pairs=pairs, end=end)
    before = pairs + np.concatenate([[0], np.cumsum(np.sum(new, axis=0))]).astype(np.int64)
    led = [*ranges(0, pairs, width), *ranges(pairs, end, width)]
    starts = [None] * len(ranges(0, pairs, width)) + before[:-1].tolist()
    count = functools.partial(_count_leaders, passages_from=pairs + negatives)
    work.over(count, list(zip(led, starts, strict=True)))
    return found


def _place_pairs(work: Work, item: tuple[Shard, int], *, pairs: int) -> None:
    shard, first = item
    kept = work.verdicts("pairs")[shard.span] == 0
    passage = np.load(work.folder / f"hashes-{shard.name}.npy")[1][kept]
    keys, places = [passage], [first + np.arange(len(passage))]
    if shard.negatives:
        owner = owners(pq.read_table(shard.path, columns=["negatives"]))
        verdicts = work.verdicts("negatives")[shard.negative_span]
        verdicts[(verdicts == 0) & ~kept[owner]] = Verdict.OF_DROPPED_PAIRS
        left = verdicts == 0
        keys.append(np.load(work.folder / f"negatives-{shard.name}.npy")[left])
        places.append(pairs + shard.first_negative + np.flatnonzero(left))
    work.runs("of-texts").write(
        f"pairs-{shard.name}", np.concatenate(keys), np.concatenate(places)
    )


def _place_passages(work: Work, shard: Shard, *, shift: int) -> None:
    left = np.flatnonzero(work.verdicts("passages")[shard.span] == 0)
    texts = pq.read_table(shard.path)["passage"].take(left).to_pylist()
    keys = hashes(normalise(text) for text in texts)
    work.runs("of-texts").write(f"passages-{shard.name}", keys, shift + shard.first + left)


def _find_leaders(work: Work, keys: Range, *, name: str, pairs: int, end: int) -> np.ndarray:
    """How many leaders that are no positives each range of places has."""
    hashed, places = work.runs(name).read(keys)[:2]
    first = ~repeated(hashed)
    leaders = places[first][np.cumsum(first) - 1]
    asked = places >= np.uint64(pairs)
    work.runs("of-leaders").write(f"{keys[0]:020d}", leaders[asked], places[asked])
    new = (places[first & asked].astype(np.int64) - pairs) // work.sizes.records
    return np.bincount(new, minlength=len(ranges(pairs, end, work.sizes.records)))


def _count_leaders(work: Work, item: tuple[Range, int | None], *, passages_from: int) -> None:
    led, start = item
    leaders, places = work.runs("of-leaders").read(led)[:2]
    new = leaders == places
    numbers = leaders if start is None else start + np.unique(leaders, return_inverse=True)[1]
    work.runs("numbers").write(f"{led[0]:015d}", places, numbers, new)
    again = places[~new & (places >= passages_from)].astype(np.int64) - passages_from
    work.verdicts("passages")[again] = Verdict.REPEATED


# --- columns --------------------------------------------------------------------------------


def owners(table: pa.Table) -> np.ndarray:
    """The row of each negative, (negatives,)."""
    offsets = np.asarray(table["negatives"].combine_chunks().offsets)
    return np.repeat(np.arange(len(table)), np.diff(offsets))


def _flat(table: pa.Table) -> pa.Array:
    """All rows' negatives, one after the other."""
    return table["negatives"].combine_chunks().flatten()

