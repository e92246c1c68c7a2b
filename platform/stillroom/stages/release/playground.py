"""What a release carries for the playground: passages of its evaluation sets, and their maps."""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import ray
import torch

from stillroom.cluster.capacity import asks
from stillroom.config.recipe import Playground as Section
from stillroom.config.scale import Scale
from stillroom.data.cleaning.sampling import evenly
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.load import load
from stillroom.release.playground_corpus import Example, Plane, Showcase, Shown
from stillroom.stages.api_teacher import is_remote
from stillroom.stages.corpus.artifact import evaluation_sets
from stillroom.storage.artifacts import Artifact

CLUSTERS = 8  # more colours than that cannot be told apart

EXAMPLES = 8

CHARACTERS = 4000  # of a text that is shown; pages of it help nobody to compare hits


def showcase(
    section: Section,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    scale: Scale,
    folder: Path,
    trusted: Sequence[str] = (),
) -> list[str]:
    """Writes SET/ as a `Showcase` for each evaluation set; returns their names.

    Texts are encoded as the server encodes queries: under the encoders' own prompts.

    Args:
        trusted: which of teacher and student may run code that they bring with them.
    """
    sets = evaluation_sets(corpus)
    chosen = {name: choose(kept, section.passages) for name, kept in sets.items()}
    texts = {name: [sets[name].passages[i] for i in ids] for name, (ids, _) in chosen.items()}
    # One after the other: both may want all the GPUs that there are.
    task = ray.remote(**asks(scale.report))(_encoded)
    by = {
        role: ray.get(task.remote(model, texts, role in trusted))
        for role, model in (("teacher", teacher), ("student", student))
        if not is_remote(model.path)  # it is not served either
    }
    for name, (_, examples) in chosen.items():
        first, *others = by
        vectors = {role: of[name] for role, of in by.items()}
        plane = Plane.of(vectors[first])
        encoders = {first: Shown(vectors[first], plane)}
        for role in others:
            own = Plane.of(vectors[role])
            own = own.turned(own.place(vectors[role]), plane.place(vectors[first]))
            encoders[role] = Shown(vectors[role], own)
        Showcase(
            texts=[text[:CHARACTERS] for text in texts[name]],
            total=len(sets[name].passages),
            examples=examples,
            clusters=clusters(vectors[first]),
            encoders=encoders,
        ).write(folder / name)
    return list(chosen)


def choose(kept: EvaluationSet, limit: int) -> tuple[list[str], list[Example]]:
    """Ids of at most `limit` passages and some queries, evenly over the set.

    What answers those queries comes first, for an example should have something to find.
    """
    judged = [qid for qid in kept.queries if qid in kept.qrels]
    asked = [judged[row] for row in evenly(len(judged), EXAMPLES)]
    answers = {
        qid: [pid for pid, grade in kept.qrels[qid].items() if grade > 0 and pid in kept.passages]
        for qid in asked
    }
    wanted = dict.fromkeys(pid for ids in answers.values() for pid in ids)
    first = list(wanted)[:limit]
    others = [pid for pid in kept.passages if pid not in wanted]
    taken = {*first, *(others[row] for row in evenly(len(others), limit - len(first)))}
    ids = [pid for pid in kept.passages if pid in taken]
    rows = {pid: row for row, pid in enumerate(ids)}
    found = [
        Example(kept.queries[qid], [rows[pid] for pid in answers[qid] if pid in rows])
        for qid in asked
    ]
    return ids, found


def clusters(vectors_nd: np.ndarray) -> np.ndarray:
    """Each vector's cluster by k-means, the largest cluster 0: uint8, (n,)."""
    vectors = np.ascontiguousarray(vectors_nd, dtype=np.float32)
    k = min(CLUSTERS, len(vectors))
    # Passages are few: FAISS would rather warn than cluster them.
    means = faiss.Kmeans(vectors.shape[1], k, niter=25, seed=17, min_points_per_centroid=1)
    means.train(vectors)
    found = means.index.search(vectors, 1)[1][:, 0]
    by_size = np.argsort(-np.bincount(found, minlength=k), kind="stable")
    return np.argsort(by_size)[found].astype(np.uint8)


def _encoded(
    model: Artifact, texts: dict[str, list[str]], trust_remote_code: bool
) -> dict[str, np.ndarray]:
    """float16, (n, d), of each set."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"])))
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    encoder = load(model.path, device=device, trust_remote_code=trust_remote_code)
    return {name: encoder.encode(of, "passage").astype(np.float16) for name, of in texts.items()}
