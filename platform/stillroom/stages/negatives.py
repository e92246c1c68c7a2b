"""Hard negatives: exact search over the teacher's vectors, then positive-aware selection."""

from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config import Negatives as Section
from stillroom.config import Scale
from stillroom.encoders.vectors import StoredVectors
from stillroom.mining.search import merge, search
from stillroom.mining.select import Rule, select
from stillroom.stages.corpus import CorpusFiles
from stillroom.stages.vectors import stored


def negatives(
    *, section: Section, seed: int, corpus: Artifact, vectors: Artifact, scale: Scale, out: Draft
) -> dict[str, Any]:
    """Writes negatives.npy, passage rows of each pair, (pairs, per_query), -1 for none.

    Negatives that came with a pair go first; mined ones fill what is left.

    Returns:
        How many were kept, and how many candidates were rejected for what reason.
    """
    texts = CorpusFiles.read(corpus)
    queries, passages = stored(vectors)
    everyone = np.arange(len(queries))
    asked = queries[everyone].astype(np.float32)
    depth = min(len(passages), 4 * section.sample_from + section.skip_first)
    scores, rows = _search(asked, vectors.path / "passages", depth, scale)
    own = passages[texts.positive].astype(np.float32)
    chosen = select(
        scores,
        rows,
        positive_score_q=np.einsum("qd,qd->q", asked, own),
        positives=texts.positive,
        given=texts.negatives,
        rule=Rule(
            max_share_of_positive=section.max_share_of_positive,
            skip_first=section.skip_first,
            sample_from=section.sample_from,
            per_query=section.per_query,
            strategy=section.strategy,
        ),
        seed=seed,
    )
    np.save(out.path / "negatives.npy", chosen.negatives)
    summary = {
        "kept": int((chosen.negatives >= 0).sum()),
        "queries_without": int((chosen.negatives < 0).all(1).sum()),
        "rejected": chosen.counts,
        "examples": _examples(texts, chosen.negatives),
    }
    atomic_json(out.path / "counts.json", summary)
    return summary


def _search(
    queries: np.ndarray, folder: Path, depth: int, scale: Scale
) -> tuple[np.ndarray, np.ndarray]:
    """The best `depth` passages of each query; every actor's task searches its own shards."""
    shards = len(StoredVectors(folder).shards)
    tasks = min(scale.negatives.actors, shards)
    work = ray.remote(num_cpus=scale.negatives.cpus)(_search_shards)
    shared = ray.put(queries)
    parts = [
        work.remote(shared, folder, [int(i) for i in mine], depth)
        for mine in np.array_split(np.arange(shards), tasks)
    ]
    return merge(ray.get(parts), depth)


def _search_shards(
    queries: np.ndarray, folder: Path, numbers: list[int], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for number, (rows, block) in enumerate(StoredVectors(folder).blocks()):
        if number in numbers:
            scores, places = search(queries, block, depth)
            found.append((scores, np.where(places >= 0, rows[places], -1)))
    return merge(found, depth)


def _examples(texts: CorpusFiles, negatives: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """A few pairs with what was mined for them, for people to look at."""
    pairs = np.flatnonzero((negatives >= 0).any(1))
    return [
        {
            "query": texts.queries[i],
            "positive": texts.passages[texts.positive[i]],
            "negatives": [texts.passages[row] for row in negatives[i] if row >= 0],
        }
        for i in pairs[:: max(1, len(pairs) // count)][:count]
    ]
