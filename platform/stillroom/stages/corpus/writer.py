"""Writes the cleaned corpus: pairs, passages, conversations and the list of sources."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillroom.config.corpus import Corpus
from stillroom.stages.corpus.passage_rows import PassageRows
from stillroom.stages.corpus.shards import (
    CleaningWorkspace,
    Shard,
    Shards,
    Verdict,
    flat_negatives,
    negative_owners,
)
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


def write_texts(
    workspace: CleaningWorkspace, shards: Shards, rows: PassageRows, sources: int, folder: Path
) -> list[int]:
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
            for shard, table in _kept_tables(workspace, shards["pairs"]):
                counts, negatives = _negative_rows(workspace, rows, shard)
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
        for shard in shards["pairs"]:
            if shard.negatives:
                indices, _, is_first = rows.of_negatives(shard.negative_span)
                table = pq.read_table(shard.path, columns=["negatives"])
                add(flat_negatives(table).take(indices[is_first == 1]), shard.source)
        for shard in shards["passages"]:
            indices, _, is_first = rows.of_passages(shard.span)
            texts = pq.read_table(shard.path)["passage"]
            add(texts.take(indices[is_first == 1]), shard.source)
    return passages_of_source


def write_conversations(workspace: CleaningWorkspace, shards: list[Shard], folder: Path) -> None:
    """Writes the table conversations/, if there are any conversations."""
    if not shards:
        return
    with TableWriter(folder / "conversations", texts=CONVERSATION_TEXTS, numbers={}) as written:
        for _, table in _kept_tables(workspace, shards):
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


def _kept_tables(
    workspace: CleaningWorkspace, shards: list[Shard]
) -> Iterator[tuple[Shard, pa.Table]]:
    """The kept rows of each shard."""
    for shard in shards:
        kept = workspace.verdicts(shard.kind)[shard.span] == Verdict.KEPT
        yield shard, pq.read_table(shard.path).filter(pa.array(kept))


def _negative_rows(
    workspace: CleaningWorkspace, rows: PassageRows, shard: Shard
) -> tuple[np.ndarray, np.ndarray]:
    """How many negatives each kept pair has; and their passage rows, pair by pair."""
    kept = workspace.verdicts("pairs")[shard.span] == Verdict.KEPT
    if not shard.negatives:
        return np.zeros(int(kept.sum()), dtype=np.int64), np.empty(0, dtype=np.int64)
    indices, passage_rows, _ = rows.of_negatives(shard.negative_span)
    owners = negative_owners(pq.read_table(shard.path, columns=["negatives"]))[indices]
    return np.bincount(owners, minlength=shard.rows)[kept], passage_rows
