"""Sources → clean pairs, passages and evaluation sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config import Corpus as Section
from stillroom.config import Docstrings, Scale
from stillroom.errors import UserError
from stillroom.text.decontaminate import decontaminate
from stillroom.text.dedupe import dedupe_pairs, text_key
from stillroom.text.docstrings import docstring_pairs
from stillroom.text.formats import (
    EvaluationSet,
    Pair,
    read_beir,
    read_pairs,
    read_passages,
    write_beir,
)
from stillroom.text.split import split


def corpus(*, section: Section, seed: int, scale: Scale, out: Draft) -> dict[str, int]:
    """Writes pairs.parquet, passages.parquet, evaluation/SET/ and counts.json.

    Returns:
        How many of each there are, and how many were dropped for what reason.
    """
    evaluation = {name: read_beir(Path(folder)) for name, folder in section.evaluation.items()}
    pairs, counts = dedupe_pairs(_pairs(section))
    if section.held_out is not None:
        parts = split(
            pairs,
            seed=seed,
            held_out_queries=section.held_out.queries,
            held_out_passages=section.held_out.passages,
            max_pairs=section.max_pairs,
        )
        pairs = parts.train
        evaluation["held-out"] = parts.evaluation
    elif section.max_pairs is not None and len(pairs) > section.max_pairs:
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: section.max_pairs]
        pairs = [pairs[i] for i in sorted(chosen)]
    pairs, hits = decontaminate(pairs, evaluation)
    if not pairs:
        raise UserError(
            "corpus.source", "no training pair is left", "Look at the counts, and add pairs"
        )
    passages = _write_tables(pairs, _more_passages(section, evaluation), out.path)
    for name, kept in evaluation.items():
        write_beir(kept, out.path / "evaluation" / name)
    counts = {**counts, "contaminated": len(hits), "pairs": len(pairs), "passages": passages}
    atomic_json(out.path / "counts.json", counts)
    return counts


def _pairs(section: Section) -> list[Pair]:
    source = section.source
    if isinstance(source, Docstrings):
        return list(docstring_pairs(source.packages, min_passage=source.min_passage_characters))
    return [pair for path in source.pairs for pair in read_pairs(Path(path))]


def _more_passages(section: Section, evaluation: dict[str, EvaluationSet]) -> list[str]:
    """Passages without a query; those of an evaluation set are never to be a negative."""
    if isinstance(section.source, Docstrings):
        return []
    forbidden = {text_key(t) for kept in evaluation.values() for t in kept.passages.values()}
    texts = (text for path in section.source.passages for text in read_passages(Path(path)))
    return [text for text in texts if text_key(text) not in forbidden]


def _write_tables(pairs: list[Pair], more: list[str], folder: Path) -> int:
    rows: dict[str, int] = {}  # equal texts are one passage
    texts: list[str] = []

    def row(text: str) -> int:
        key = text_key(text)
        if key not in rows:
            rows[key] = len(texts)
            texts.append(text)
        return rows[key]

    table = {
        "query": [pair.query for pair in pairs],
        "positive": [row(pair.passage) for pair in pairs],
        "negatives": [[row(text) for text in pair.negatives] for pair in pairs],
    }
    for text in more:
        row(text)
    types = pa.schema(
        {"query": pa.string(), "positive": pa.int64(), "negatives": pa.list_(pa.int64())}
    )
    pq.write_table(pa.table(table, schema=types), folder / "pairs.parquet")
    pq.write_table(pa.table({"text": texts}), folder / "passages.parquet")
    return len(texts)


@dataclass(frozen=True)
class CorpusFiles:
    """What the other stages read of a corpus."""

    queries: list[str]
    positive: np.ndarray  # passage row of each pair
    negatives: list[list[int]]  # passage rows that came with the pair
    passages: list[str]

    @staticmethod
    def read(artifact: Artifact) -> "CorpusFiles":
        pairs = pq.read_table(artifact.path / "pairs.parquet")
        return CorpusFiles(
            queries=pairs["query"].to_pylist(),
            positive=pairs["positive"].to_numpy(),
            negatives=pairs["negatives"].to_pylist(),
            passages=pq.read_table(artifact.path / "passages.parquet")["text"].to_pylist(),
        )


def evaluation_sets(artifact: Artifact) -> dict[str, EvaluationSet]:
    folders = sorted((artifact.path / "evaluation").iterdir())
    return {folder.name: read_beir(folder) for folder in folders}
