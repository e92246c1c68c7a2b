"""Passage rows: which row of passages.parquet each kept text has."""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.cleaning.external_sort import Range, SortedRuns, ranges
from stillroom.data.cleaning.text_keys import hashes, normalise, repeated
from stillroom.stages.corpus.shards import Shard, Verdict, Work, owners


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
    work.runs("of-texts").write(f"pairs-{shard.name}", np.concatenate(keys), np.concatenate(places))


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
