"""Writes the cleaned corpus: pairs, passages, conversations and the list of sources."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.config.base import DataKind
from stillroom.config.corpus import Corpus
from stillroom.stages.corpus.passage_rows import rows_of_negatives
from stillroom.stages.corpus.shards import Shard, flat_negatives, negative_owners
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, WorkFiles
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.column_writer import TableWriter

# Lengths are of texts, in characters. The negatives of pair i are
# negatives[negative_starts[i] : negative_starts[i + 1]].
PAIR_NUMBERS: dict[str, type] = {
    "positive": np.int64,
    "negatives": np.int64,
    "negative_starts": np.int64,
    "source": np.int16,
    "length": np.int32,
}
PASSAGE_NUMBERS: dict[str, type] = {"source": np.int16, "length": np.int32}
CONVERSATION_TEXTS = ("prompt", "completion")
SHARDS_AHEAD = 4  # are read while one is written
Content = TypeVar("Content")


def write_texts(workspace: CleaningWorkspace, sources: int, folder: Path) -> list[int]:
    """Writes the tables pairs/ and passages/.

    Passages are the positives in the order of the pairs, then other negatives, then passages.

    Args:
        sources: how many there are.

    Returns:
        How many passages each source has.
    """
    passages_of_source = [0] * sources
    with TableWriter(folder / "passages", texts=["text"], numbers=PASSAGE_NUMBERS) as passages:

        def add(texts: pa.Array, source: int) -> None:
            passages_of_source[source] += len(texts)
            source_of_each = np.full(len(texts), source)
            passages.append(text=texts, source=source_of_each, length=pc.utf8_length(texts))

        # Positives first: a passage is then of the same source as its pair.
        with TableWriter(folder / "pairs", texts=["query"], numbers=PAIR_NUMBERS) as pairs:
            first = first_negative = 0
            pairs.append(negative_starts=[0])
            for shard, (table, counts, negatives) in _read_ahead(workspace, "pairs", _read_pairs):
                pairs.append(
                    query=table["query"],
                    positive=np.arange(first, first + len(table)),
                    negatives=negatives,
                    negative_starts=first_negative + np.cumsum(counts),
                    source=np.full(len(table), shard.source),
                    length=pc.utf8_length(table["query"]),
                )
                add(table["passage"], shard.source)
                first, first_negative = first + len(table), first_negative + len(negatives)
        for shard, texts in _read_ahead(workspace, "pairs", _read_new_negatives):
            if texts is not None:
                add(texts, shard.source)
        for shard, table in _read_ahead(workspace, "passages", _read_kept):
            add(table["passage"], shard.source)
    return passages_of_source


def write_conversations(workspace: CleaningWorkspace, folder: Path) -> None:
    """Writes the table conversations/, if there are any conversations."""
    if not workspace.groups["conversations"]:
        return
    with TableWriter(folder / "conversations", texts=CONVERSATION_TEXTS, numbers={}) as written:
        for _, table in _read_ahead(workspace, "conversations", _read_kept):
            written.append(**{name: table[name] for name in CONVERSATION_TEXTS})


def write_sources(
    section: Corpus,
    counts: dict[str, dict[str, dict[str, int]]],
    passages_of_source: list[int],
    folder: Path,
) -> None:
    """Writes sources.json, in the order of the numbers in the column `source`.

    Args:
        counts: source → kind → counts, as in counts.json.
    """
    sources = [
        {
            "name": name,
            "prompts": None if source.prompts is None else source.prompts.model_dump(),
            "symmetric": source.symmetric,
            "counts": {
                "pairs": counts[name]["pairs"]["kept"],
                "passages": passages,  # with those of its pairs
                "conversations": counts[name]["conversations"]["kept"],
            },
        }
        for passages, (name, source) in zip(
            passages_of_source, section.sources.items(), strict=True
        )
    ]
    atomic_write_json(folder / "sources.json", sources)


def _read_ahead(
    workspace: CleaningWorkspace, kind: DataKind, read: Callable[[WorkFiles, Shard, Any], Content]
) -> Iterator[tuple[Shard, Content]]:
    """read(files, shard, whether each row is kept) of each shard; a few are read ahead."""
    files = workspace.files
    waiting: deque[tuple[Shard, Future[Content]]] = deque()
    with ThreadPoolExecutor(SHARDS_AHEAD) as pool:
        for shard, verdicts in workspace.verdicts(kind):
            waiting.append((shard, pool.submit(read, files, shard, verdicts == Verdict.KEPT)))
            if len(waiting) > SHARDS_AHEAD:
                first, content = waiting.popleft()
                yield first, content.result()
        for shard, content in waiting:
            yield shard, content.result()


def _read_kept(files: WorkFiles, shard: Shard, kept: np.ndarray) -> pa.Table:
    """The kept rows of a shard."""
    return files.table(shard).filter(pa.array(kept))


def _read_pairs(
    files: WorkFiles, shard: Shard, kept: np.ndarray
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The kept pairs of a shard, how many negatives each has, and their passage rows."""
    pairs = files.table(shard, "query", "passage").filter(pa.array(kept))
    if not shard.negatives:
        return pairs, np.zeros(len(pairs), dtype=np.int64), np.empty(0, dtype=np.int64)
    indices, rows, _ = rows_of_negatives(files, shard)
    owners = negative_owners(files.table(shard, "negatives"))[indices]
    return pairs, np.bincount(owners, minlength=shard.rows)[kept], rows


def _read_new_negatives(files: WorkFiles, shard: Shard, _: np.ndarray) -> pa.Array | None:
    """The negatives of a shard's kept pairs that are the first of equal texts, if there are any."""
    if not shard.negatives:
        return None
    indices, _, is_first = rows_of_negatives(files, shard)
    return flat_negatives(files.table(shard, "negatives")).take(indices[is_first == 1])
