"""Finished blocks of queries, kept in files until all are mined."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from stillroom.encoders.safe_read import map_array
from stillroom.mining.mined import MinedNegatives
from stillroom.mining.select import REASONS, SelectedNegatives
from stillroom.storage.atomic import atomic_write
from stillroom.storage.column_writer import TableWriter

BLOCKS_FOLDER = "blocks"  # beside the result, until that is whole


@dataclass(frozen=True)
class MinedBlock:
    """The negatives of neighbouring queries, and the scores of their positives."""

    selected: SelectedNegatives
    positive_scores: np.ndarray  # float32, (q,)

    def __len__(self) -> int:
        return len(self.positive_scores)

    def without(self, skipped_q: np.ndarray) -> "MinedBlock":
        """The same, without negatives of some queries, bool (q,)."""
        skipped_q1 = skipped_q[:, None]
        negatives = np.where(skipped_q1, -1, self.selected.negatives)
        scores = np.where(skipped_q1, np.float32(np.nan), self.selected.scores)
        return replace(self, selected=replace(self.selected, negatives=negatives, scores=scores))


@dataclass(frozen=True)
class BlockFolder:
    """A file for each block, by its first query. Blocks may differ in size."""

    folder: Path

    def finished(self) -> int:
        """How many queries, from the first on, have their block."""
        return sum(len(block) for block in self._blocks())

    def write(self, first: int, block: MinedBlock) -> None:
        """Keeps the block whose first query is `first`."""
        self.folder.mkdir(exist_ok=True)
        with atomic_write(self._file(first), "wb") as file:
            np.savez(
                file,
                negatives=block.selected.negatives,
                scores=block.selected.scores,
                positive=block.positive_scores,
                rejected=np.array(json.dumps(block.selected.rejected)),
            )

    def join(self, out: Path, per_query: int, recall: dict[str, float]) -> MinedNegatives:
        """Writes the columns of all blocks into a folder, and maps them."""
        rejected = Counter(dict.fromkeys(REASONS, 0))
        wide = (per_query,)
        numbers: Mapping[str, DTypeLike] = {
            "negatives": (np.int64, wide),
            "scores": (np.float32, wide),
            "positive_scores": np.float32,
        }
        with TableWriter(out, texts=(), numbers=numbers) as table:
            for block in self._blocks():
                table.append(
                    negatives=block.selected.negatives,
                    scores=block.selected.scores,
                    positive_scores=block.positive_scores,
                )
                rejected.update(block.selected.rejected)
        columns = {name: map_array(out / f"{name}.npy") for name in numbers}
        return MinedNegatives(**columns, rejected=dict(rejected), recall=recall)

    def _blocks(self) -> Iterator[MinedBlock]:
        """From the first query on, without a gap."""
        first = 0
        while (file := self._file(first)).exists():
            with np.load(file) as arrays:
                rejected = json.loads(str(arrays["rejected"]))
                selected = SelectedNegatives(arrays["negatives"], arrays["scores"], rejected)
                block = MinedBlock(selected, arrays["positive"])
            yield block
            first += len(block)

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:012d}.npz"
