"""Miners, which find candidates, and scorers of candidates, as Ray actors: vectors, BM25 and
cross-encoders.

Shapes: q queries, k candidates each.
"""

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import ray
import torch

from stillroom.cluster.capacity import bundle_for, bundles_that_fit, cluster_node_types
from stillroom.config.recipe import Ivf
from stillroom.config.scale import SearchActors
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.errors import UserError
from stillroom.mining.bm25 import (
    Analysers,
    Bm25Index,
    Bm25Statistics,
    QueryTerms,
    WeightedTerms,
)
from stillroom.mining.exact import TopK, chunk_sizes, merge_top_k, row_dots, search
from stillroom.mining.ivf import (
    Centres,
    InvertedFile,
    learn_centres,
    number_of_lists,
    recall_of_exact,
)
from stillroom.stages.negatives.texts import OpenMiningTexts

log = logging.getLogger(__name__)

GIB = 2**30


class Scorer(Protocol):
    """Scores passages for queries."""

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        """Scores of passage rows for the queries from number `first` on: float32, (q, k); -inf for
        row -1."""


class Miner(Scorer, Protocol):
    """Finds candidates for queries.

    Attributes:
        block_size: queries to search for at once.
    """

    block_size: int

    def start_search(self, first: int, last: int, k: int) -> Callable[[], TopK]:
        """Starts the search for the queries from number `first` to `last`, exclusive; call the
        returned function to wait for the k best passages of each."""


@dataclass(frozen=True)
class SharedActors:
    """Starts the actors of one miner or scorer.

    Miners and scorers work in turns. So only the first reserves CPUs, and they share the GPUs: all
    fit where one does.

    Attributes:
        share_count: miners and scorers that share the GPUs.
    """

    scale: SearchActors
    reserves_cpus: bool
    share_count: int

    def start(self, actor_class: type, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Starts an actor for each tuple of arguments; each also gets its number of threads."""
        remote_class = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self.scale.gpus / self.share_count,
            label_selector=self.scale.node_labels,
            scheduling_strategy="SPREAD",
            # A dead actor is restarted, and its unanswered calls are repeated.
            max_restarts=-1,
            max_task_retries=-1,
        )(actor_class)
        return [
            remote_class.remote(*actor_arguments, self._threads) for actor_arguments in arguments
        ]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function before the actors start, in a task with the CPUs of one of them; the
        function also gets their number of threads."""
        task = ray.remote(num_cpus=self._cpus, label_selector=self.scale.node_labels)(function)
        return ray.get(task.remote(*arguments, self._threads))

    @property
    def _cpus(self) -> float:
        return self.scale.cpus if self.reserves_cpus else 0

    @property
    def _threads(self) -> int:
        return max(1, int(self.scale.cpus))

    @property
    def max_actors(self) -> int:
        """As many as the recipe requests, but no more than the cluster can ever hold: Ray would
        wait for the others forever."""
        room = bundles_that_fit(cluster_node_types(), bundle_for(self.scale))
        return max(1, min(self.scale.actors, room))


class DenseMiner:
    """Searches stored vectors, whose shards are divided among actors.

    Args:
        folder: with queries/ and passages/.
        ivf: searches more passages than its `min_passages` approximately.
    """

    def __init__(
        self, folder: os.PathLike[str], depth: int, actors: SharedActors, ivf: Ivf | None = None
    ):
        self.queries = StoredVectors(Path(folder) / "queries")
        self.passages = StoredVectors(Path(folder) / "passages")
        self.block_size, together = chunk_sizes(
            actors.scale.memory_gib * GIB, self.passages.dims, depth
        )
        self.ivf = ivf if ivf is not None and len(self.passages) > ivf.min_passages else None
        self.probes = 0
        # A reference, kept here, since a restarted actor needs it again; in a list, since Ray warns
        # of a plain one that it will not keep it.
        self.centres: list[ray.ObjectRef] = []
        if self.ivf is not None:
            lists = self.ivf.nlist or number_of_lists(len(self.passages))
            self.centres = [ray.put(actors.call(_learn_centres, folder, lists))]
        shards = np.arange(len(self.passages.files))
        self.actors = actors.start(
            SearchActor,
            [
                (folder, part.tolist(), self.centres, together)
                for part in np.array_split(shards, min(actors.max_actors, len(shards)))
            ],
        )

    def start_search(self, first: int, last: int, k: int) -> Callable[[], TopK]:
        rows = np.arange(first, last)
        parts = self._search(rows, k) if self.ivf is None else self._search_lists(rows, k)

        def wait() -> TopK:
            scores, rows = merge_top_k(ray.get(parts), k)
            if self.ivf is None:
                return scores, rows
            return merge_top_k([(self.scores(first, rows), rows)], k)  # with exact scores

        return wait

    def _search(self, queries: np.ndarray, k: int) -> list[Any]:
        shared = ray.put(self._queries(queries))
        return [actor.search.remote(shared, k) for actor in self.actors]

    def _search_lists(self, queries: np.ndarray, k: int) -> list[Any]:
        shared = ray.put(self._queries(queries))
        # The actors take turns in finding the nearest lists, which are the same for all.
        in_turn = self.actors[int(queries[0]) // self.block_size % len(self.actors)]
        lists = in_turn.nearest_lists.remote(shared, self.probes)
        return [actor.search_lists.remote(shared, lists, k) for actor in self.actors]

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        scores_qk = np.full(rows_qk.shape, -np.inf, dtype=np.float32)
        # A few queries at a time: all their candidates' vectors are in memory.
        step = max(1, (1 << 24) // (self.passages.dims * max(1, rows_qk.shape[1])))
        for start in range(0, len(rows_qk), step):
            query, column = np.nonzero(rows_qk[start : start + step] >= 0)
            queries = self._queries(first + start + query)
            passages = self.passages[rows_qk[start + query, column]]
            scores_qk[start + query, column] = row_dots(queries, passages)
        return scores_qk

    def choose_probes(self, k: int) -> float | None:
        """Chooses how many lists a query reads, unless the recipe says it.

        Returns:
            The recall on a sample of the queries; None of exact search.

        Raises:
            UserError: when it is below the recipe's floor.
        """
        if self.ivf is None:
            return None
        sample = evenly_spaced(len(self.queries), self.ivf.recall_queries)
        exact = merge_top_k(ray.get(self._search(sample, k)), k)
        most = len(ray.get(self.centres[0]))
        self.probes = self.ivf.nprobe or 1
        while True:  # at most until all lists are read
            found = merge_top_k(ray.get(self._search_lists(sample, k)), k)
            recall = recall_of_exact(found, exact)
            if recall >= self.ivf.min_recall or self.ivf.nprobe or self.probes >= most:
                break
            self.probes *= 2
        log.info(
            "negatives: a query reads %d of %d lists, which have %.3f of what exact search finds",
            min(self.probes, most), most, recall,
        )  # fmt: skip
        if recall < self.ivf.min_recall:
            raise UserError(
                "negatives.ivf.min_recall",
                f"approximate search finds {recall:.3f} of what exact search finds, which is less "
                f"than {self.ivf.min_recall}",
                f"Raise negatives.ivf.nprobe above {self.ivf.nprobe}, or leave it out",
            )
        return recall

    def _queries(self, rows: np.ndarray) -> np.ndarray:
        return self.queries[rows].astype(np.float32)


def _learn_centres(folder: os.PathLike[str], lists: int, threads: int) -> np.ndarray:
    faiss.omp_set_num_threads(threads)
    passages = StoredVectors(Path(folder) / "passages")
    return learn_centres(passages.blocks(), len(passages), lists)


class SearchActor:
    """Searches some of the passages' shards: exactly, or in lists around centres.

    Args:
        centres: reference of the lists' centres (lists, dims), if there are any.
    """

    def __init__(
        self,
        folder: os.PathLike[str],
        shards: list[int],
        centres: list[ray.ObjectRef],
        together: int,
        threads: int,
    ):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        self.stored = StoredVectors(Path(folder) / "passages")
        self.shards = shards
        self.together = together
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        if centres:
            self.centres = Centres(ray.get(centres[0]))
            self.lists = InvertedFile(self.stored.blocks(shards), self.centres)

    def search(self, queries: np.ndarray, k: int) -> TopK:
        """The best k passages of each query."""
        passages = self.stored.blocks(self.shards)
        return search(queries, passages, k, passages_per_product=self.together, device=self.device)

    def nearest_lists(self, queries: np.ndarray, probes: int) -> np.ndarray:
        """The numbers of the lists to search, int64 (q, probes)."""
        return self.centres.nearest(queries, probes)

    def search_lists(self, queries: np.ndarray, lists: np.ndarray, k: int) -> TopK:
        """The best k passages of each query in its lists."""
        return self.lists.search(queries, lists, k)


class Bm25Miner:
    """Searches with BM25. Actors share the passages, and are told the statistics of all."""

    block_size = 1024

    def __init__(self, open_texts: OpenMiningTexts, actors: SharedActors):
        self.texts = open_texts()
        self.analysers = Analysers()
        count = len(self.texts.passages)
        borders = np.linspace(0, count, min(actors.max_actors, count) + 1).astype(int).tolist()
        self.actors = actors.start(
            Bm25Actor, [(open_texts, range(*span)) for span in itertools.pairwise(borders)]
        )

    @cached_property
    def statistics(self) -> Bm25Statistics:
        """Of all passages."""
        return Bm25Statistics.total(ray.get([actor.statistics.remote() for actor in self.actors]))

    def start_search(self, first: int, last: int, k: int) -> Callable[[], TopK]:
        parts = self._call("search", first, last, k)
        return lambda: merge_top_k(ray.get(parts), k)

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        parts = self._call("scores", first, first + len(rows_qk), ray.put(rows_qk))
        return np.maximum.reduce(ray.get(parts))

    def _call(self, method: str, first: int, last: int, argument: Any) -> list[Any]:
        """Calls a method of all actors for some queries."""
        queries = self.texts.queries[first:last], self.texts.query_languages[first:last]
        terms = ray.put(self.analysers.query_terms(*queries))
        # Each actor gets the frequencies from the others, without a stop here.
        frequencies = [actor.frequencies.remote(terms) for actor in self.actors]
        return [
            getattr(actor, method).remote(argument, terms, self.statistics, *frequencies)
            for actor in self.actors
        ]


class Bm25Actor:
    """The index of some of the passages."""

    def __init__(self, open_texts: OpenMiningTexts, rows: range, threads: int):
        texts = open_texts()
        self.index = Bm25Index(texts.passages, texts.passage_languages, rows, on_disk=True)

    def statistics(self) -> Bm25Statistics:
        return self.index.statistics

    def frequencies(self, terms: QueryTerms) -> np.ndarray:
        return self.index.frequencies(terms.hashes)

    def search(
        self, k: int, terms: QueryTerms, statistics: Bm25Statistics, *frequencies: np.ndarray
    ) -> TopK:
        weighted = WeightedTerms.of(terms, statistics, np.sum(frequencies, axis=0))
        return self.index.search(weighted, k)

    def scores(
        self,
        rows_qk: np.ndarray,
        terms: QueryTerms,
        statistics: Bm25Statistics,
        *frequencies: np.ndarray,
    ) -> np.ndarray:
        weighted = WeightedTerms.of(terms, statistics, np.sum(frequencies, axis=0))
        return self.index.scores(weighted, rows_qk)


class CrossEncoderScorer:
    """Scores with a cross-encoder, in a pool of actors."""

    def __init__(self, model: os.PathLike[str], open_texts: OpenMiningTexts, actors: SharedActors):
        self.actors = actors.start(CrossEncoderActor, [(model, open_texts)] * actors.max_actors)

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        query, column = np.nonzero(rows_qk >= 0)
        rows = rows_qk[query, column]
        parts = [
            actor.scores.remote(*part)
            for actor, *part in zip(
                self.actors,
                np.array_split(first + query, len(self.actors)),
                np.array_split(rows, len(self.actors)),
                strict=True,
            )
        ]
        scores_qk = np.full(rows_qk.shape, -np.inf, dtype=np.float32)
        scores_qk[query, column] = np.concatenate(ray.get(parts))
        return scores_qk


class CrossEncoderActor:
    """A cross-encoder, loaded."""

    def __init__(self, model: os.PathLike[str], open_texts: OpenMiningTexts, threads: int):
        # Imported here: transformers takes seconds to load, and only this actor needs it.
        from stillroom.mining.cross_encoder import CrossEncoder

        torch.set_num_threads(threads)
        self.texts = open_texts()
        self.model = CrossEncoder(Path(model), device="cuda" if ray.get_gpu_ids() else "cpu")

    def scores(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """Scores of pairs of rows."""
        return self.model(
            [
                (self.texts.queries[query], self.texts.passages[passage])
                for query, passage in zip(queries, passages, strict=True)
            ]
        )
