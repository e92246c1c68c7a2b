"""The playground's search: a deployment that holds the corpora of all releases."""

import time
from typing import Any

import faiss
import numpy as np
from pydantic_core import to_json
from ray import serve

from stillroom.errors import beginning
from stillroom.release.playground_corpus import PlaygroundCorpus
from stillroom.release.reader import Release, Target

LABEL_LENGTH = 90  # characters of a passage in its label on the map


@serve.deployment
class PlaygroundIndex:
    """Exact search with FAISS in the corpora that releases contain.

    Args:
        releases: those with a corpus.
    """

    def __init__(self, releases: list[Release]):
        self.corpora: dict[tuple[str, str], PlaygroundCorpus] = {}
        self.indices: dict[tuple[str, str, str], Any] = {}
        for release in releases:
            for name in release.corpora:
                corpus = PlaygroundCorpus.read(release.corpus_folder(name))
                self.corpora[release.name, name] = corpus
                for target, view in corpus.encoders.items():
                    index = faiss.IndexFlatIP(view.vectors.shape[1])
                    index.add(view.vectors.astype(np.float32))
                    self.indices[release.name, name, target] = index

    def catalogue(self) -> list[dict[str, Any]]:
        """The corpora to search, with example queries."""
        return [
            {
                "release": release,
                "name": name,
                "passages": len(corpus.texts),
                "total": corpus.total,
                "examples": [
                    {"query": example.query, "answers": example.answers}
                    for example in corpus.examples
                ],
            }
            for (release, name), corpus in self.corpora.items()
        ]

    def map(self, release: str, corpus: str) -> bytes:
        """JSON: each passage's point in each encoder's plane, its cluster, and its first words."""
        passages = self.corpora[release, corpus]
        points = {
            target: np.round(view.plane.project(view.vectors), 4).tolist()
            for target, view in passages.encoders.items()
        }
        labels = [
            beginning(" ".join(beginning(text, 2 * LABEL_LENGTH).split()), LABEL_LENGTH)
            for text in passages.texts
        ]
        clusters = passages.clusters.tolist()
        return to_json({"points": points, "clusters": clusters, "labels": labels})

    def search(self, release: str, corpus: str, target: Target, query_d: np.ndarray, k: int) -> Any:
        """The k nearest passages of a query [d], and the query's point in the encoder's plane."""
        passages = self.corpora[release, corpus]
        query_1d = query_d[None].astype(np.float32)
        started = time.perf_counter()
        scores, rows = self.indices[release, corpus, target].search(
            query_1d, min(k, len(passages.texts))
        )
        seconds = time.perf_counter() - started
        return {
            "hits": [
                {"row": row, "score": score, "text": passages.texts[row]}
                for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            ],
            "point": passages.encoders[target].plane.project(query_1d)[0].tolist(),
            "search_ms": 1000 * seconds,
        }
