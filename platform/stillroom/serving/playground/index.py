"""TODO docstring: serving/playground/index.py."""

import time
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from pydantic_core import to_json
from ray import serve

from stillroom.release.playground_corpus import Showcase
from stillroom.release.reader import Release, Target

if TYPE_CHECKING:
    pass


LABEL = 90  # characters of a passage that its point on the map is labelled with


@serve.deployment
class Index:
    """Exact search, by FAISS, in what releases carry of their corpora.

    Args:
        releases: those that carry any.
    """

    def __init__(self, releases: list[Release]):
        self.corpora: dict[tuple[str, str], Showcase] = {}
        self.indices: dict[tuple[str, str, str], Any] = {}
        for release in releases:
            for name in release.corpora:
                shown = Showcase.read(release.corpus_folder(name))
                self.corpora[release.name, name] = shown
                for target, one in shown.encoders.items():
                    index = faiss.IndexFlatIP(one.vectors.shape[1])
                    index.add(one.vectors.astype(np.float32))
                    self.indices[release.name, name, target] = index

    def catalogue(self) -> list[dict[str, Any]]:
        """What there is to search, with queries to try."""
        return [
            {
                "release": release,
                "name": name,
                "passages": len(shown.texts),
                "total": shown.total,
                "examples": [
                    {"query": example.query, "answers": example.answers}
                    for example in shown.examples
                ],
            }
            for (release, name), shown in self.corpora.items()
        ]

    def map(self, release: str, corpus: str) -> bytes:
        """JSON: each passage's place in either encoder's plane, its cluster, and how it begins."""
        shown = self.corpora[release, corpus]
        points = {
            target: np.round(one.plane.place(one.vectors), 4).tolist()
            for target, one in shown.encoders.items()
        }
        labels = [" ".join(text[: 2 * LABEL].split())[:LABEL] for text in shown.texts]
        return to_json({"points": points, "clusters": shown.clusters.tolist(), "labels": labels})

    def search(self, release: str, corpus: str, target: Target, query_d: np.ndarray, k: int) -> Any:
        """The k best passages of a query, and the query's place in the encoder's plane."""
        shown = self.corpora[release, corpus]
        query = query_d[None].astype(np.float32)
        began = time.perf_counter()
        scores, rows = self.indices[release, corpus, target].search(query, min(k, len(shown.texts)))
        seconds = time.perf_counter() - began
        return {
            "hits": [
                {"row": row, "score": score, "text": shown.texts[row]}
                for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            ],
            "at": shown.encoders[target].plane.place(query)[0].tolist(),
            "search_ms": 1000 * seconds,
        }
