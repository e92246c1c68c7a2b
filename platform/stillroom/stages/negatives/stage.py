"""Hard negatives: what miners find, less what their rules refuse."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import Scale
from stillroom.encoders.model_names import model_of
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.mining.known import texts_of
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.stages.negatives.mine import mine
from stillroom.storage.artifacts import Artifact, Draft, atomic_json

log = logging.getLogger(__name__)

BLOCKS = "blocks"  # in a draft: what is mined already


def negatives(
    *,
    section: Section,
    seed: int,
    corpus: Artifact,
    scale: Scale,
    out: Draft,
    **vectors: Artifact,
) -> dict[str, Any]:
    """Writes, for each pair, negatives.npy, int64 passage rows (pairs, per_query), -1 for none;
    scores.npy, what these score, float32, nan for none; positive_scores.npy (pairs,); and
    counts.json.

    Negatives that came with a pair go first; mined ones fill what is left. What a killed run left
    of its blocks of queries is kept.

    Args:
        vectors: of the miners, by the roles that `plan` gives them.

    Returns:
        How many were kept, how many candidates were rejected for what reason, and how scores
        are distributed.

    Raises:
        UserError: when approximate search is below its floor, or nothing but passages of the
            evaluation sets is found.
    """
    files = CorpusFiles.read(corpus)
    folders: dict[str, os.PathLike[str] | None] = {}
    for place, name in enumerate(section.miners):
        role = "vectors" if name == "teacher" else f"vectors_{place}"
        folders[name] = None if name == "bm25" else vectors[role]
    rescore = None if section.rescore is None else model_of(section.rescore, out.store)
    texts = texts_of(
        files.queries,
        files.passages,
        files.positive,
        files.negatives,
        evaluation_sets(corpus).values(),
        searched=section.searched,
    )
    for folder in filter(None, folders.values()):
        texts.barred_p[[*StoredVectors(Path(folder) / "passages").skipped]] = True
    blocks = out.path / BLOCKS
    blocks.mkdir(exist_ok=True)
    mined = mine(
        queries=files.queries,
        passages=files.passages,
        texts=texts,
        miners=folders,
        section=section,
        rescore=rescore,
        seed=seed,
        scale=scale.negatives,
        blocks=blocks,
    )
    for folder in filter(None, folders.values()):
        none = [*StoredVectors(Path(folder) / "queries").skipped]
        mined.negatives[none], mined.scores[none] = -1, np.nan
    np.save(out.path / "negatives.npy", mined.negatives)
    np.save(out.path / "scores.npy", mined.scores)
    np.save(out.path / "positive_scores.npy", mined.positive_scores)
    summary = {**mined.summary(), "examples": _examples(files, mined.negatives)}
    atomic_json(out.path / "counts.json", summary)
    shutil.rmtree(blocks)
    return summary


def _examples(files: CorpusFiles, rows: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """A few pairs with what was mined for them, for people to look at."""
    pairs = np.flatnonzero((rows >= 0).any(1))
    return [
        {
            "query": files.queries[i],
            "positive": files.passages[files.positive[i]],
            "negatives": [files.passages[row] for row in rows[i] if row >= 0],
        }
        for i in pairs[:: max(1, len(pairs) // count)][:count]
    ]
