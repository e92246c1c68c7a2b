"""The passes that clean a corpus: whatever is found again, the first stays.

Each goes over shards of texts or over ranges of hashes, in any order and any number of processes,
and sets the verdict of the rows that it drops; what it dropped before, it finds dropped again.
"""

import functools
import hashlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning import minhash as near_dedupe
from stillroom.data.cleaning.decontaminate import Hit, Judged, decontaminate
from stillroom.data.cleaning.external_sort import Range, ranges
from stillroom.data.cleaning.sampling import last_drawn, lots
from stillroom.data.cleaning.text_keys import NEAR, hashes, mix, normalise, repeated
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from stillroom.stages.corpus.shards import Shard, Verdict, Work, flat, owners

HELD_OUT = "held-out"


def dedupe(work: Work, shards: Sequence[Shard], *, beginnings_of: int) -> None:
    """Of pairs with one passage the first stays; of those left with one query, the first.

    A query with two passages would make a right answer count as a negative. And a negative
    that another pair has as the same query's positive is taken out of its pair's.

    Args:
        beginnings_of: number of the source of whose pairs `hold_out` needs the beginnings.
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


def _hash_pairs(work: Work, shard: Shard, *, with_negatives: bool, beginnings_of: int) -> None:
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
    negative = hashes(map(normalise, flat(table).to_pylist()))
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
    # Here, whatever decontamination takes for a copy: no beginning is on both sides.
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


def drop_tested(
    work: Work, shards: Sequence[Shard], judged: Judged, *, action: Literal["drop", "report"]
) -> Iterator[tuple[Shard, int, list[Hit]]]:
    """Drops what gives an answer of an evaluation set away, of any kind.

    Args:
        action: report leaves the pairs where they are, but for those that were held out.

    Returns:
        Of each shard of pairs, how many were looked at, and what was found among them.
    """
    content = pickle.dumps(judged)
    (work.folder / "judged.pickle").write_bytes(content)
    token = hashlib.sha256(content).hexdigest()
    function = functools.partial(_drop_tested, token=token, action=action)
    for shard, found in zip(shards, work.over(function, shards), strict=True):
        if found is not None:
            yield shard, *found


@functools.lru_cache(maxsize=1)
def _judged(path: Path, token: str) -> Judged:
    """Once a process. The token is what it was written as, and nothing else is unpickled: the
    folder may be one that others write to."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != token:
        raise UserError(str(path), "was altered after it was written", "Run the recipe again")
    found: Judged = pickle.loads(content)
    return found


def _drop_tested(
    work: Work, shard: Shard, *, token: str, action: str
) -> tuple[int, list[Hit]] | None:
    judged = _judged(work.folder / "judged.pickle", token)
    table = pq.read_table(shard.path)
    verdicts = work.verdicts(shard.kind)[shard.span]
    if shard.kind == "passages":
        verdicts[judged.held(table["passage"].to_pylist())] = Verdict.TESTED
        return None
    if shard.kind == "conversations":
        texts = zip(table["question"].to_pylist(), table["completion"].to_pylist(), strict=True)
        for hit in decontaminate([Pair(*pair) for pair in texts], judged)[1]:
            verdicts[hit.pair] = Verdict.TESTED
        told = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
        keys = hashes(normalise(f"{prompt}\n{completion}") for prompt, completion in told)
        rows = np.arange(shard.span.start, shard.span.stop, dtype=np.uint64)
        work.runs("of-conversations").write(shard.name, keys, rows)
        return None
    kept = np.flatnonzero(verdicts == 0)
    of_negatives = work.verdicts("negatives")[shard.negative_span]
    starts = np.asarray(table["negatives"].combine_chunks().offsets)
    table = table.take(kept)
    columns = (table[name].to_pylist() for name in ("query", "passage", "negatives"))
    pairs = [Pair(query, passage, tuple(own)) for query, passage, own in zip(*columns, strict=True)]
    clean, hits = decontaminate(pairs, judged, drop=False)
    for hit in hits:
        if hit.set == HELD_OUT:
            verdicts[kept[hit.pair]] = Verdict.HELD_OUT
        elif action == "drop":
            verdicts[kept[hit.pair]] = Verdict.CONTAMINATED
    for place, pair in enumerate(clean):
        if len(pair.negatives) < len(pairs[place].negatives):
            for number, text in enumerate(pairs[place].negatives, start=starts[kept[place]]):
                if text not in pair.negatives and of_negatives[number] == 0:
                    of_negatives[number] = Verdict.TESTED
    return len(pairs), [hit for hit in hits if hit.set != HELD_OUT]


def drop_repeated_conversations(work: Work) -> None:
    work.over_hashes(
        _drop_repeated, "of-conversations", verdict=Verdict.REPEATED, kind="conversations"
    )


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
