"""The stage `negatives`: hard negatives for every training pair."""

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import Scale
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.encoders.model_names import find_model
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets
from stillroom.stages.negatives.blocks import BLOCKS_FOLDER
from stillroom.stages.negatives.known import find_known_texts
from stillroom.stages.negatives.mine import mine
from stillroom.stages.negatives.texts import corpus_texts
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json

EXAMPLE_QUERIES = 1000  # that are looked through for examples
KNOWN_FOLDER = "known"  # in a draft: what is known of the texts


def negatives(
    *,
    section: Section,
    seed: int,
    corpus: Artifact,
    scale: Scale,
    out: Draft,
    **vectors: Artifact,
) -> dict[str, Any]:
    """Mines negatives for all pairs.

    Writes negatives.npy, passage rows, int64 (pairs, per_query), -1 for none; scores.npy, their
    scores, float32, nan for none; positive_scores.npy (pairs,); and counts.json. Negatives that
    came with a pair go first, and mined ones fill the rest. Blocks that a killed run left are kept.

    Args:
        vectors: of the miners, by the roles that `plan` gives them.

    Returns:
        Counts of kept candidates and of rejected ones by reason, histograms of scores, examples.

    Raises:
        UserError: when approximate search is below its recall floor, or when all candidates are
            passages of the evaluation sets.
    """
    data = CorpusData.open(corpus)
    folders: dict[str, os.PathLike[str] | None] = {}
    for number, name in enumerate(section.miners):
        role = "vectors" if name == "teacher" else f"vectors_{number}"
        folders[name] = None if name == "bm25" else vectors[role]
    cross_encoder = (
        None if section.cross_encoder is None else find_model(section.cross_encoder, out.store)
    )
    open_texts = functools.partial(corpus_texts, corpus)
    known = find_known_texts(
        open_texts,
        data.positive_rows,
        data.negative_rows,
        read_evaluation_sets(corpus).values(),
        include_evaluation_passages=section.include_evaluation_passages,
        folder=out.path / KNOWN_FOLDER,
        excluded_rows=_skipped(folders, "passages"),
    )
    mined = mine(
        open_texts,
        known,
        folders,
        section,
        cross_encoder=cross_encoder,
        seed=seed,
        scale=scale.negatives,
        folder=out.path,
        skipped_queries=_skipped(folders, "queries"),
    )
    summary = {**mined.summary(), "examples": _examples(data, mined.negatives)}
    atomic_write_json(out.path / "counts.json", summary)
    for folder in (KNOWN_FOLDER, BLOCKS_FOLDER):
        shutil.rmtree(out.path / folder, ignore_errors=True)
    return summary


def _skipped(folders: Mapping[str, os.PathLike[str] | None], kind: str) -> list[int]:
    """Rows that lack a vector of some miner."""
    stored = [StoredVectors(Path(folder) / kind) for folder in folders.values() if folder]
    return sorted({row for vectors in stored for row in vectors.skipped})


def _examples(data: CorpusData, rows: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """A few pairs with their negatives, to show in the report."""
    chosen = evenly_spaced(len(rows), EXAMPLE_QUERIES)
    pairs = chosen[(rows[chosen] >= 0).any(1)]
    return [
        {
            "query": data.queries[i],
            "positive": data.passages[data.positive_rows[i]],
            "negatives": [data.passages[row] for row in rows[i] if row >= 0],
        }
        for i in pairs[:: max(1, len(pairs) // count)][:count]
    ]
