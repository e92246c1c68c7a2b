"""Retrievers that find a query's neighbours in the pool of passages."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray

from stillroom.cluster.capacity import ray_options
from stillroom.config.languages import AUTO
from stillroom.config.scale import ActorPool
from stillroom.config.synthetic import FromPassages
from stillroom.data.text.detection import detect_language
from stillroom.encoders.model_names import find_model
from stillroom.mining.bm25 import Bm25
from stillroom.mining.exact import search
from stillroom.storage.artifacts import Store

# (queries, k) → indices of passages, int64, (queries, k), best first, -1 for none.
Retriever = Callable[[list[str], int], np.ndarray]


class VectorRetriever:
    """Exact search by the vectors of a model."""

    def __init__(self, passages: list[str], model: os.PathLike[str]):
        # Imported late: torch takes seconds, and neither BM25 nor an estimate needs it.
        from stillroom.encoders.files.load import load_encoder

        self.encoder = load_encoder(Path(model), device="cuda" if ray.get_gpu_ids() else "cpu")
        self.vectors = self.encoder.encode(passages, "passage")

    def find(self, queries: list[str], k: int) -> np.ndarray:
        """The k nearest passages of each query; a `Retriever`."""
        blocks = [(np.arange(len(self.vectors)), self.vectors)]
        return search(self.encoder.encode(queries, "query"), blocks, k)[1]


def make_retriever(
    options: FromPassages, passages: list[str], language: str, store: Store, scale: ActorPool
) -> Retriever:
    """BM25 in this process, or a model in a Ray actor.

    Args:
        language: of the passages, for BM25; `auto` detects it.
    """
    if options.retriever == "bm25":
        if language == AUTO:
            language = detect_language(passages)
        index = Bm25(passages, [language] * len(passages))
        return lambda queries, k: index.search(queries, [language] * len(queries), k)[0]
    model = find_model(options.retriever, store)
    actor = ray.remote(**ray_options(scale))(VectorRetriever).remote(passages, model)
    return lambda queries, k: ray.get(actor.find.remote(queries, k))
