"""The playground data of a release: passages of its evaluation sets, and their maps.

Shapes: n passages, d dims.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
import ray
import torch

from stillroom.cluster.capacity import ray_options
from stillroom.cluster.progress import Progress, run_with_progress
from stillroom.config.scale import ActorPool
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.usable_vectors import require_usable
from stillroom.errors import beginning
from stillroom.evaluation.encode_progress import OnTexts, encode_in_chunks
from stillroom.evaluation.known_vectors import KnownVectors
from stillroom.release.playground_corpus import (
    EncoderView,
    ExampleQuery,
    PcaPlane,
    PlaygroundCorpus,
)
from stillroom.storage.artifacts import Artifact

MAX_CLUSTERS = 8  # more colours cannot be told apart
EXAMPLES = 8
MAX_CHARACTERS = 4000  # of a text that is shown; more does not help to compare hits


def write_playground(
    sets: Mapping[str, EvaluationSet],
    chosen: Mapping[str, tuple[list[str], list[ExampleQuery]]],
    known: Mapping[str, KnownVectors],
    folder: Path,
) -> None:
    """Writes SET/ as a `PlaygroundCorpus` for each evaluation set.

    Args:
        chosen: set → the result of `choose_passages`.
        known: role → the vectors of all these passages; the first role's make the clusters.
    """
    for name, (ids, examples) in chosen.items():
        texts = [sets[name].passages[id] for id in ids]
        vectors = {role: by_text.get(texts, "passage") for role, by_text in known.items()}
        with np.errstate(over="ignore"):
            first, *others = [(role, v.astype(np.float16)) for role, v in vectors.items()]
        for _, halves in (first, *others):  # raw vectors may have numbers above 65,504
            require_usable(halves, normalised=False, texts=texts)
        plane = PcaPlane.fit(first[1])
        views = {first[0]: EncoderView(first[1], plane)}
        for role, vectors_nd in others:
            own_plane = PcaPlane.fit(vectors_nd)
            aligned = own_plane.aligned_to(own_plane.project(vectors_nd), plane.project(first[1]))
            views[role] = EncoderView(vectors_nd, aligned)
        PlaygroundCorpus(
            texts=[beginning(text, MAX_CHARACTERS) for text in texts],
            total=len(sets[name].passages),
            examples=examples,
            clusters=cluster_vectors(first[1]),
            encoders=views,
        ).write(folder / name)


def encode_missing(
    model: Artifact,
    texts: Sequence[str],
    known: KnownVectors,
    scale: ActorPool,
    progress: Progress,
    *,
    trust_remote_code: bool,
) -> None:
    """Encodes passages that have no known vector yet, in a Ray task.

    Under the encoder's own prompt, as the server encodes passages.
    """
    if missing := known.missing(texts, "passage"):
        vectors_nd = run_with_progress(
            _encode, model, missing, trust_remote_code,
            options=ray_options(scale), progress=progress,
        )  # fmt: skip
        known.add(missing, "passage", vectors_nd)


def _encode(
    model: Artifact, texts: list[str], trust_remote_code: bool, on_texts: OnTexts
) -> np.ndarray:
    """float32, (n, d)."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"])))
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    encoder = load_encoder(model.path, device=device, trust_remote_code=trust_remote_code)
    return encode_in_chunks(lambda chunk: encoder.encode(chunk, "passage"), texts, on_texts)


def choose_passages(dataset: EvaluationSet, limit: int) -> tuple[list[str], list[ExampleQuery]]:
    """Ids of at most `limit` passages, in the set's order, and some queries to try.

    Both are evenly spaced over the set. The queries' answers are chosen first, so that example
    queries find something.
    """
    judged = [query_id for query_id in dataset.queries if query_id in dataset.qrels]
    query_ids = [judged[row] for row in evenly_spaced(len(judged), EXAMPLES)]
    answers = {
        query_id: [
            passage_id
            for passage_id, grade in dataset.qrels[query_id].items()
            if grade > 0 and passage_id in dataset.passages
        ]
        for query_id in query_ids
    }
    all_answers = dict.fromkeys(passage_id for ids in answers.values() for passage_id in ids)
    first = list(all_answers)[:limit]
    others = [passage_id for passage_id in dataset.passages if passage_id not in all_answers]
    fill = evenly_spaced(len(others), limit - len(first))
    chosen = {*first, *(others[row] for row in fill)}
    ids = [passage_id for passage_id in dataset.passages if passage_id in chosen]
    rows = {passage_id: row for row, passage_id in enumerate(ids)}
    examples = [
        ExampleQuery(
            dataset.queries[query_id],
            [rows[passage_id] for passage_id in answers[query_id] if passage_id in rows],
        )
        for query_id in query_ids
    ]
    return ids, examples


def cluster_vectors(vectors_nd: np.ndarray) -> np.ndarray:
    """Each vector's cluster by k-means, the largest cluster 0: uint8, (n,)."""
    vectors = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    k = min(MAX_CLUSTERS, len(vectors))
    # With few vectors FAISS would warn without `min_points_per_centroid`.
    kmeans = faiss.Kmeans(vectors.shape[1], k, niter=25, seed=17, min_points_per_centroid=1)
    kmeans.train(vectors)
    cluster_n = kmeans.index.search(vectors, 1)[1][:, 0]
    by_size = np.argsort(-np.bincount(cluster_n, minlength=k), kind="stable")
    return np.argsort(by_size)[cluster_n].astype(np.uint8)
