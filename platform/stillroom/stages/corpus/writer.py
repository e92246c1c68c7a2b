"""Writes the cleaned corpus: pairs, passages, conversations and the list of sources."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
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

# Texts are distinct after cleaning, so a dictionary would not shrink them.
TEXT_OPTIONS = {"compression": "zstd", "use_dictionary": False}

PAIRS_SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "positive": pa.int64(),
        "negatives": pa.list_(pa.int64()),
        "source": pa.int16(),
    }
)

PASSAGES_SCHEMA = pa.schema({"text": pa.string(), "source": pa.int16()})
CONVERSATIONS_SCHEMA = pa.schema({"prompt": pa.string(), "completion": pa.string()})


def write_texts(
    workspace: CleaningWorkspace, shards: Shards, rows: PassageRows, sources: int, folder: Path
) -> list[int]:
    """Writes pairs.parquet and passages.parquet.

    Passages are the positives in the order of the pairs, then other negatives, then passages.

    Args:
        sources: how many there are.

    Returns:
        How many passages each source has.
    """
    passages_of_source = [0] * sources
    with pq.ParquetWriter(folder / "passages.parquet", PASSAGES_SCHEMA, **TEXT_OPTIONS) as passages:

        def add(texts: pa.Array, source: int) -> None:
            passages_of_source[source] += len(texts)
            columns = {"text": texts, "source": _repeat(source, len(texts))}
            passages.write_table(pa.table(columns, schema=PASSAGES_SCHEMA))

        # Positives first: a passage is then of the same source as its pair.
        with pq.ParquetWriter(folder / "pairs.parquet", PAIRS_SCHEMA, **TEXT_OPTIONS) as pairs:
            first = 0
            for shard, table in _kept_tables(workspace, shards["pairs"]):
                columns = {
                    "query": table["query"],
                    "positive": pa.array(np.arange(first, first + len(table))),
                    "negatives": _negative_rows(workspace, rows, shard),
                    "source": _repeat(shard.source, len(table)),
                }
                pairs.write_table(pa.table(columns, schema=PAIRS_SCHEMA))
                add(table["passage"], shard.source)
                first += len(table)
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
    """Writes conversations.parquet, if there are any conversations."""
    if not shards:
        return
    path = folder / "conversations.parquet"
    with pq.ParquetWriter(path, CONVERSATIONS_SCHEMA, **TEXT_OPTIONS) as file:
        for _, table in _kept_tables(workspace, shards):
            file.write_table(table.select(CONVERSATIONS_SCHEMA.names))


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


def _negative_rows(workspace: CleaningWorkspace, rows: PassageRows, shard: Shard) -> pa.Array:
    """The passage rows of the negatives of each kept pair."""
    kept = workspace.verdicts("pairs")[shard.span] == Verdict.KEPT
    if not shard.negatives:
        return pa.array([[]] * int(kept.sum()), pa.list_(pa.int64()))
    indices, passage_rows, _ = rows.of_negatives(shard.negative_span)
    owners = negative_owners(pq.read_table(shard.path, columns=["negatives"]))[indices]
    counts = np.bincount(owners, minlength=shard.rows)[kept]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(passage_rows))


def _repeat(source: int, count: int) -> pa.Array:
    return pa.array(np.full(count, source, dtype=np.int16))
