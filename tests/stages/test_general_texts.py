"""A student's phases on general texts: their teacher's vectors, their share, and where they are
not used."""

import json

import numpy as np
import pytest
import torch

from stillroom.config.recipe import Vectors
from stillroom.config.scale import Scale
from stillroom.config.student import Student
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.learning.order import WorkerShard
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.training_batches import distillation_batches
from stillroom.stages.vectors.stage import vectors
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, online_vectors, stored_vectors
from stillroom.storage.artifacts import Store
from support.run_stages import embedding_in_process, publish_corpus, publish_teacher

SHARE = 0.75  # of the batches, which general texts get


@pytest.fixture(scope="module")
def artifacts(decoder, tmp_path_factory):
    """(corpus, teacher, vectors) of 12 pairs and 30 general texts, one of them very short."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(str(folder / "runs"))
    rows = [{"query": f"about {i}", "positive": f"it is {i} and {i * i}"} for i in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"number {i} {'and more of them ' * (i % 9)}general words" for i in range(30)]
    rows = [{"text": text} for text in texts]
    (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "sources": {"own": {"format": "files", "pairs": [str(folder / "pairs.jsonl")]}},
        "held_out": {"queries": 2, "passages": 4},
        "texts": {"general": 100, "sources": [], "files": [str(folder / "general.jsonl")]},
    }
    texts = publish_corpus(store, "tiny", content)
    encoder = create_encoder(
        str(decoder),
        space="tiny-k",
        options=ContractOptions(
            pooling="mean", prompts={"query": "find: ", "passage": ""}, precision="float32"
        ),
    )
    teacher = publish_teacher(store, "tiny", encoder)
    with store.draft("vectors", "tiny", "k") as draft, embedding_in_process():
        summary = vectors(
            section=Vectors(shard_size=8), corpus=texts, teacher=teacher, scale=Scale(), out=draft,
            general=True,
        )  # fmt: skip
        assert (summary["passages"], summary["general"]) == (12, 30)
        return texts, teacher, draft.publish({})


def batches(artifacts, encoder, phase, rows=None):
    texts, teacher, stored = artifacts
    content = {
        "base": str(encoder), "pooling": "mean", "space": "teacher",
        "phases": [{"steps": 4, "global_batch": 8, "learning_rate": 1e-3, **phase}],
    }  # fmt: skip
    section = Student.model_validate_json(json.dumps(content))
    open_vectors = rows or (lambda files, device: stored_vectors(files, teacher, stored))
    student = create_encoder(
        str(encoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    )
    return distillation_batches(
        TeacherVectors(texts, open_vectors), None, section.phases[0], 0, student, WorkerShard()
    )


TEXTS = {
    "data": "texts",
    "mix": {"general": SHARE, "own": 1 - SHARE},
    "one_source_per_batch": False,
}


def test_general_texts_get_their_share_of_a_phase_on_texts(artifacts, encoder):
    made = batches(artifacts, encoder, TEXTS)
    passages, general_passages = 12, len(CorpusData.open(artifacts[0]).general_passages)
    queries = 12
    rows = np.concatenate([made.ids(step) for step in range(200)])
    is_general = (rows >= passages) & (rows < passages + general_passages)
    is_general |= rows >= passages + general_passages + queries
    assert is_general.mean() == pytest.approx(SHARE, abs=0.04)


def test_every_text_comes_with_its_teacher_s_vector_in_its_role(artifacts, encoder):
    _, teacher, _ = artifacts
    made = batches(artifacts, encoder, TEXTS)
    model, data = load_encoder(teacher.path), made.data
    seen = set()
    for step in range(8):
        batch = made(step)
        rows, teacher_vectors = batch.ids, batch.teacher_vectors
        for row, vector in zip(rows.tolist(), teacher_vectors, strict=True):
            is_query = row >= len(data.passages)
            text = data.queries[row - len(data.passages)] if is_query else data.passages[row]
            [expected] = model.encode([text], "query" if is_query else "passage")
            np.testing.assert_allclose(vector.float(), expected, atol=2e-3)
            seen.add(("general" in text, is_query))
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_an_online_teacher_gives_the_vectors_that_are_stored(artifacts, encoder):
    _, teacher, _ = artifacts
    model = load_encoder(teacher.path)
    stored = batches(artifacts, encoder, TEXTS)
    online = batches(artifacts, encoder, TEXTS, lambda files, device: online_vectors(files, model))
    torch.testing.assert_close(
        stored(0).teacher_vectors, online(0).teacher_vectors, atol=2e-3, rtol=0
    )


def test_pairs_and_their_negatives_are_the_corpus_s_alone(artifacts, encoder):
    made = batches(artifacts, encoder, {"data": "pairs", "hard_negatives": 0})
    assert len(made.data.passages) == 12
    assert made.ids(0).max() < 12


def test_a_miner_searches_no_general_text(artifacts):
    assert len(StoredVectors(artifacts[2].path / "passages")) == 12
