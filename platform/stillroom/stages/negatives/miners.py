"""Who finds candidates, and who scores them: vectors, BM25 and cross-encoders, on Ray."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch

from stillroom.cluster.capacity import bundle, kinds, places
from stillroom.config.recipe import Ivf
from stillroom.config.scale import Searchers
from stillroom.data.cleaning.sampling import evenly
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.errors import UserError
from stillroom.mining.bm25 import Bm25
from stillroom.mining.exact import Found, dot, merge, search, sizes
from stillroom.mining.ivf import InvertedFile, recall

GIB = 2**30


class Scorer(Protocol):
    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        """Scores of the passages for the queries from `first` on, float32; -inf for row -1."""


class Miner(Scorer, Protocol):
    block: int  # queries to ask for at once

    def ask(self, first: int, last: int, k: int) -> Callable[[], Found]:
        """Begins to search for the queries from first to last; what is returned waits for it."""


@dataclass(frozen=True)
class Pool:
    """Actors of one of several miners and readers, which work by turns.

    Only the first reserves CPUs, and GPUs are shared, so that all of them fit where one does.
    """

    scale: Searchers
    reserves: bool
    among: int

    def of(self, kind: type, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """An actor for each arguments."""
        actor = ray.remote(
            num_cpus=self.scale.cpus if self.reserves else 0,
            num_gpus=self.scale.gpus / self.among,
            label_selector=self.scale.node_labels,
            # One that dies is started again, and asked again what it did not answer.
            max_restarts=-1,
            max_task_retries=-1,
        )(kind)
        threads = max(1, int(self.scale.cpus))
        return [actor.remote(*own, threads) for own in arguments]

    @property
    def most(self) -> int:
        """Actors that the cluster will have room for: another would be waited for in vain."""
        return max(1, min(self.scale.actors, places(kinds(), bundle(self.scale))))


class Dense:
    """Search among stored vectors, whose shards are parted among actors.

    Args:
        folder: with queries/ and passages/.
    """

    def __init__(self, folder: os.PathLike[str], depth: int, pool: Pool, ivf: Ivf | None = None):
        self.queries = StoredVectors(Path(folder) / "queries")
        self.passages = StoredVectors(Path(folder) / "passages")
        self.block, together = sizes(pool.scale.memory_gib * GIB, self.passages.dims, depth)
        self.ivf = ivf if ivf is not None and len(self.passages) > ivf.above else None
        # An index's passages follow from the recipe alone, so that its results do.
        shards = 1 if self.ivf is None else max(1, self.ivf.part // self.passages.shard)
        numbers = np.arange(len(self.passages.files))
        parts = [numbers[start : start + shards] for start in range(0, len(numbers), shards)]
        mine = np.array_split(np.arange(len(parts)), min(pool.most, len(parts)))
        self.actors = pool.of(
            _Searcher,
            [(folder, [parts[i].tolist() for i in own], self.ivf, together) for own in mine],
        )

    def ask(self, first: int, last: int, k: int) -> Callable[[], Found]:
        parts = self._search(np.arange(first, last), k, exact=self.ivf is None)

        def answer() -> Found:
            scores, rows = merge(ray.get(parts), k)
            if self.ivf is None:
                return scores, rows
            return merge([(self.scores(first, rows), rows)], k)  # as exact search scores them

        return answer

    def _search(self, queries: np.ndarray, k: int, *, exact: bool) -> list[Any]:
        shared = ray.put(self._queries(queries))
        return [actor.search.remote(shared, k, exact) for actor in self.actors]

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        found = np.full(rows_qk.shape, -np.inf, dtype=np.float32)
        # A few queries at a time: all of their candidates' vectors are in memory.
        step = max(1, (1 << 24) // (self.passages.dims * max(1, rows_qk.shape[1])))
        for start in range(0, len(rows_qk), step):
            query, place = np.nonzero(rows_qk[start : start + step] >= 0)
            queries = self._queries(first + start + query)
            passages = self.passages[rows_qk[start + query, place]]
            found[start + query, place] = dot(queries, passages)
        return found

    def recall(self, k: int) -> float | None:
        """Of approximate search, measured on a sample of the queries; None where it is exact.

        Raises:
            UserError: when it is below the floor.
        """
        if self.ivf is None:
            return None
        sample = evenly(len(self.queries), self.ivf.sample)
        rows = [
            merge(ray.get(self._search(sample, k, exact=exact)), k)[1] for exact in (False, True)
        ]
        found = recall(*rows)
        if found < self.ivf.min_recall:
            raise UserError(
                "negatives.ivf.min_recall",
                f"approximate search finds {found:.3f} of what exact search finds, which is less "
                f"than {self.ivf.min_recall}",
                f"Raise negatives.ivf.probes above {self.ivf.probes}, or search exactly",
            )
        return found

    def _queries(self, rows: np.ndarray) -> np.ndarray:
        return self.queries[rows].astype(np.float32)


class _Searcher:
    """One of the actors: some of the passages' shards, in parts, each with an index or none."""

    def __init__(
        self,
        folder: os.PathLike[str],
        parts: list[list[int]],
        ivf: Ivf | None,
        together: int,
        threads: int,
    ):
        torch.set_num_threads(threads)
        self.stored = StoredVectors(Path(folder) / "passages")
        self.numbers = [number for part in parts for number in part]
        self.together = together
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.indexes = [] if ivf is None else [self._index(part, ivf) for part in parts]

    def _index(self, numbers: list[int], ivf: Ivf) -> InvertedFile:
        return InvertedFile(
            lambda: self.stored.blocks(numbers),
            lists=ivf.lists,
            probes=ivf.probes,
            device=self.device,
        )

    def search(self, queries: np.ndarray, k: int, exact: bool) -> Found:
        if exact:
            passages = self.stored.blocks(self.numbers)
            return search(queries, passages, k, together=self.together, device=self.device)
        return merge([index.search(queries, k) for index in self.indexes], k)


class Lexical:
    """BM25, in one actor."""

    block = 1024

    def __init__(self, queries: Sequence[str], passages: Sequence[str], pool: Pool):
        self.queries = queries
        (self.actor,) = pool.of(_Lexical, [(ray.put(passages),)])

    def ask(self, first: int, last: int, k: int) -> Callable[[], Found]:
        found = self.actor.search.remote(self.queries[first:last], k)
        return lambda: ray.get(found)

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        of = self.queries[first : first + len(rows_qk)]
        return np.array(ray.get(self.actor.scores.remote(of, rows_qk)))


class _Lexical:
    def __init__(self, passages: Sequence[str], threads: int):
        self.index = Bm25(passages)

    def search(self, queries: Sequence[str], k: int) -> Found:
        rows, scores = self.index.search(queries, k)
        return np.where(rows >= 0, scores, np.float32(-np.inf)), rows

    def scores(self, queries: Sequence[str], rows_qk: np.ndarray) -> np.ndarray:
        found = [
            every[rows] for every, rows in zip(self.index.scores(queries), rows_qk, strict=True)
        ]
        return np.where(rows_qk >= 0, np.array(found), np.float32(-np.inf)).astype(np.float32)


class Reader:
    """A cross-encoder in a pool of actors, as a scorer."""

    def __init__(
        self,
        model: os.PathLike[str],
        queries: Sequence[str],
        passages: Sequence[str],
        pool: Pool,
    ):
        self.queries, self.passages = queries, passages
        self.actors = pool.of(_Reader, [(model,)] * pool.most)

    def scores(self, first: int, rows_qk: np.ndarray) -> np.ndarray:
        query, place = np.nonzero(rows_qk >= 0)
        rows = rows_qk[query, place]
        pairs = [
            (self.queries[first + int(q)], self.passages[int(row)])
            for q, row in zip(query, rows, strict=True)
        ]
        size = -(-len(pairs) // len(self.actors)) or 1
        parts = [
            actor.scores.remote(pairs[i * size : (i + 1) * size])
            for i, actor in enumerate(self.actors)
        ]
        found = np.full(rows_qk.shape, -np.inf, dtype=np.float32)
        found[query, place] = np.concatenate(ray.get(parts))
        return found


class _Reader:
    def __init__(self, model: os.PathLike[str], threads: int):
        # Late, since transformers takes seconds to load and nobody else needs it.
        from stillroom.mining.cross_encoder import CrossEncoder

        torch.set_num_threads(threads)
        self.read = CrossEncoder(Path(model), device="cuda" if ray.get_gpu_ids() else "cpu")

    def scores(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return self.read(pairs)
