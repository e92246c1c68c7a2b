"""The stage `negatives`: hard negatives for every training pair."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import Scale
from stillroom.encoders.model_names import find_model
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.mining.known_texts import find_known_texts
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets
from stillroom.stages.negatives.mine import MiningTexts, mine
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json

BLOCKS_FOLDER = "blocks"  # in a draft: finished blocks of queries


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
    known = find_known_texts(
        data.queries,
        data.passages,
        data.positive_rows,
        data.negative_rows,
        read_evaluation_sets(corpus).values(),
        include_evaluation_passages=section.include_evaluation_passages,
    )
    for folder in filter(None, folders.values()):
        known.excluded_p[[*StoredVectors(Path(folder) / "passages").skipped]] = True
    blocks_folder = out.path / BLOCKS_FOLDER
    blocks_folder.mkdir(exist_ok=True)
    mined = mine(
        MiningTexts(
            data.queries,
            data.languages_of("query"),
            data.passages,
            data.languages_of("passage"),
            known,
        ),
        folders,
        section,
        cross_encoder=cross_encoder,
        seed=seed,
        scale=scale.negatives,
        blocks_folder=blocks_folder,
    )
    for folder in filter(None, folders.values()):
        skipped = [*StoredVectors(Path(folder) / "queries").skipped]
        mined.negatives[skipped], mined.scores[skipped] = -1, np.nan
    np.save(out.path / "negatives.npy", mined.negatives)
    np.save(out.path / "scores.npy", mined.scores)
    np.save(out.path / "positive_scores.npy", mined.positive_scores)
    summary = {**mined.summary(), "examples": _examples(data, mined.negatives)}
    atomic_write_json(out.path / "counts.json", summary)
    shutil.rmtree(blocks_folder)
    return summary


def _examples(data: CorpusData, rows: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """A few pairs with their negatives, to show in the report."""
    pairs = np.flatnonzero((rows >= 0).any(1))
    return [
        {
            "query": data.queries[i],
            "positive": data.passages[data.positive_rows[i]],
            "negatives": [data.passages[row] for row in rows[i] if row >= 0],
        }
        for i in pairs[:: max(1, len(pairs) // count)][:count]
    ]
