"""Teacher vectors: prompts of each source, stored shards, texts that cannot be encoded."""

import json
import os
import resource

import numpy as np
import pytest
import torch

from stillroom.config.recipe import Vectors
from stillroom.config.scale import EmbeddingActors, Scale
from stillroom.config.student import Student
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.usable_vectors import (
    BrokenModelError,
    UnusableVectorError,
    broken_weight_error,
    require_usable,
)
from stillroom.encoders.vectors.stored import (
    DIGESTS_FILE,
    StoredVectors,
    VerifiedVectors,
    shard_path,
    text_digest,
    write_order,
)
from stillroom.errors import UserError
from stillroom.learning.order import WorkerShard
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.training_batches import distillation_batches
from stillroom.stages.vectors.encode import encode_isolating_failures, encode_with_prompts
from stillroom.stages.vectors.stage import vectors
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, stored_vectors
from stillroom.storage.artifacts import Store
from support.run_stages import embedding_in_process, publish_corpus, publish_teacher

PROMPTS = {"query": "Instruct: Find it\nQuery: ", "passage": "Found: "}


def test_a_text_is_embedded_with_the_prompt_of_its_source(ray_cluster, decoder, tmp_path):
    sources = {}
    for name in ("own", "other"):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"query": f"{name} {i}?", "positive": f"{name} " * (i + 1)} for i in range(5)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = {"format": "files", "pairs": [str(file)]}
    sources["other"]["prompts"] = PROMPTS
    write_beir(EvaluationSet({"p": "a"}, {"q": "b"}, {"q": {"p": 1}}), tmp_path / "set")
    content = {"sources": sources, "evaluation": {"set": str(tmp_path / "set")}}
    store = Store(str(tmp_path / "runs"))
    texts = publish_corpus(store, "two", content)
    prompts = {"query": "Query: ", "passage": ""}
    encoder = create_encoder(
        str(decoder),
        space="two",
        options=ContractOptions(pooling="mean", prompts=prompts, precision="float32"),
    )
    teacher = publish_teacher(store, "two", encoder)
    with store.draft("vectors", "two", "k") as draft, embedding_in_process():
        summary = vectors(
            section=Vectors(shard_size=4), corpus=texts, teacher=teacher, scale=Scale(), out=draft
        )
        path = draft.publish({"summary": summary}).path
        queries, passages = (StoredVectors(path / name) for name in ("queries", "passages"))
    assert (summary["reused"], summary["encoded"]) == (0, len(queries) + len(passages))
    with store.draft("vectors", "again", "k") as draft:  # starts no actor: nothing is left to do
        arguments = {"corpus": texts, "teacher": teacher, "scale": Scale(), "out": draft}
        again = vectors(section=Vectors(shard_size=7), **arguments)
        assert (again["reused"], again["encoded"]) == (summary["encoded"], 0)
        for name, first in (("queries", queries), ("passages", passages)):
            copied = StoredVectors(draft.path / name)
            np.testing.assert_array_equal(copied[first.order], first[first.order])
    with store.draft("vectors", "two-miner0", "k") as draft:
        # Another model, named by an artifact's reference: it keeps its own prompts.
        vectors(section=Vectors(), corpus=texts, model="teacher/two", scale=Scale(), out=draft)
        other_vectors = StoredVectors(draft.publish({}).path / "queries")
    files, encoder = CorpusData.open(texts), load_encoder(teacher.path)
    expected = [encoder.encode([text], "query")[0] for text in files.queries]
    np.testing.assert_allclose(other_vectors[np.arange(len(expected))], expected, atol=1e-3)
    for role, stored, role_texts, source_numbers in (
        ("query", queries, files.queries, files.pair_sources),
        ("passage", passages, files.passages, files.passage_sources),
    ):
        # The slow way: one text after the other.
        expected = [
            encoder.encode([text], role, prompt=PROMPTS[role] if number else prompts[role])[0]
            for text, number in zip(role_texts, source_numbers, strict=True)
        ]
        np.testing.assert_allclose(stored[np.arange(len(role_texts))], expected, atol=1e-3)


def test_vectors_are_read_from_more_shards_than_a_process_may_open_files(tmp_path):
    expected = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float16)
    write_order(tmp_path, np.arange(600))
    for number, shard in enumerate(np.split(expected, 300)):
        np.save(shard_path(tmp_path, number), shard)
    open_files = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 200, limits[1]))
    try:
        stored = StoredVectors(tmp_path)
        rows = np.random.default_rng(1).permutation(600)
        np.testing.assert_array_equal(stored[rows], expected[rows])
        np.testing.assert_array_equal(stored[rows[:50]], expected[rows[:50]])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_changed_text_is_refused_even_when_other_rows_are_right(tmp_path):
    texts = ["one", "two", "three"]
    write_order(tmp_path, np.arange(3))
    np.save(shard_path(tmp_path, 0), np.eye(3, dtype=np.float16))
    np.save(
        tmp_path / DIGESTS_FILE,
        np.array([text_digest(None, text) for text in texts], dtype=np.uint64),
    )
    verified = VerifiedVectors(StoredVectors(tmp_path), ["one", "two", "another"], [None] * 3)
    for _ in range(2):
        np.testing.assert_array_equal(verified[np.array([1, 0])], [[0, 1, 0], [1, 0, 0]])
        with pytest.raises(UserError, match="row 2: holds the vector of another text"):
            verified[np.array([0, 2])]


def test_a_text_that_fails_its_encoder_is_found_and_all_others_get_vectors():
    batch_sizes = []

    def encode(rows):
        batch_sizes.append(len(rows))
        if 11 in rows:
            raise ValueError("a text that nobody can read")
        if 8 in rows and len(rows) > 1:  # row 8 spoils every row of its batch
            raise UnusableVectorError.of_text(0, "its vector is not finite")
        encoded = np.repeat(rows[:, None].astype(np.float16), 4, axis=1)
        encoded[rows == 5] = np.nan
        require_usable(encoded + 1, normalised=False)
        return encoded

    encoded_texts, failed = encode_isolating_failures(encode, 64, 4)
    assert failed == {
        5: "its vector is not finite",
        11: "ValueError: a text that nobody can read",
    }
    expected = np.repeat(np.arange(64, dtype=np.float16)[:, None], 4, axis=1)
    expected[[5, 11]] = 0
    np.testing.assert_array_equal(encoded_texts, expected)
    assert len(batch_sizes) < 64


@pytest.mark.parametrize(("length", "stored"), [(1e5, "is not finite"), (1e-9, "has length zero")])
def test_a_vector_that_float16_cannot_store_is_refused_by_its_text(length, stored):
    class Raw:
        contract = BaseContract(
            max_tokens=8, dims=(2,), normalise=False, similarity="dot", space="s"
        )

        def encode(self, texts, role, *, prompt):
            return np.array([[length if text == "b" else 1, 0] for text in texts], np.float32)

    texts, prompts = ["a", "b", "c", "d"], [None, "p", None, "p"]
    with pytest.raises(UnusableVectorError, match=rf"^text 2 'b': its vector {stored} in float16"):
        encode_with_prompts(Raw(), texts, prompts, "passage")
    vectors, failed = encode_isolating_failures(
        lambda rows: encode_with_prompts(
            Raw(), [texts[row] for row in rows], [prompts[row] for row in rows], "passage"
        ),
        4,
        2,
    )
    assert failed == {1: f"its vector {stored} in float16, in which vectors are stored"}
    np.testing.assert_array_equal(vectors, [[1, 0], [0, 0], [1, 0], [1, 0]])


def test_a_broken_model_is_no_text_s_fault():
    def encode(rows):
        raise broken_weight_error("model: layer.0.weight")

    with pytest.raises(BrokenModelError, match=r"model: layer\.0\.weight"):
        encode_isolating_failures(encode, 8, 4)


def test_when_every_text_fails_the_encoder_s_error_is_raised():
    def encode(rows):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        encode_isolating_failures(encode, 8, 4)


@pytest.fixture
def poisoned(encoder, tmp_path):
    """(store, corpus, teacher). One word of the corpus is too much for the teacher's layer norm."""
    rows = [{"query": f"about {i}", "positive": f"it is number {i}"} for i in range(12)]
    rows[3]["positive"] = rows[7]["query"] = "a quagga"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_beir(EvaluationSet({"p": "a"}, {"q": "b"}, {"q": {"p": 1}}), tmp_path / "set")
    content = {
        "sources": {"zoo": {"format": "files", "pairs": [str(tmp_path / "pairs.jsonl")]}},
        "evaluation": {"set": str(tmp_path / "set")},
    }
    store = Store(str(tmp_path / "runs"))
    texts = publish_corpus(store, "zoo", content)
    teacher_encoder = create_encoder(
        str(encoder),
        space="zoo",
        options=ContractOptions(
            pooling="mean", prompts={"query": "", "passage": ""}, precision="float32"
        ),
    )
    ids = [
        teacher_encoder.tokenizer(text)["input_ids"]
        for text in ("a quagga", "it is about number a")
    ]
    token_ids = sorted({*ids[0]} - {*ids[1]})
    assert token_ids, "no token that other texts lack"
    with torch.no_grad():
        teacher_encoder.backbone.get_input_embeddings().weight[token_ids[0]] = 3e38
    teacher = publish_teacher(store, "zoo", teacher_encoder)
    return store, texts, teacher


def test_a_text_that_cannot_be_encoded_is_named_or_skipped_in_all_later_stages(
    ray_cluster, poisoned, encoder, tmp_path
):
    store, texts, teacher = poisoned
    files = CorpusData.open(texts)
    arguments = {"section": Vectors(shard_size=5), "corpus": texts, "teacher": teacher}
    query, passage = files.queries.index("a quagga"), files.passages.index("a quagga")
    with (
        pytest.raises(UserError, match=f"queries, row {query} of source zoo: cannot .* 'a quagga'"),
        store.draft("vectors", "zoo", "k") as draft,
        embedding_in_process(),
    ):
        vectors(**arguments, scale=Scale(), out=draft)
    scale = Scale(vectors=EmbeddingActors(on_error="skip"))
    with store.draft("vectors", "zoo", "k") as draft:
        summary = vectors(**arguments, scale=scale, out=draft)
        vectors_artifact = draft.publish({"summary": summary})
    skipped = vectors_artifact.manifest["made_by"]["summary"]["skipped"]
    assert skipped == {
        "queries": {f"row {query}": "'a quagga': its vector is not finite"},
        "passages": {f"row {passage}": "'a quagga': its vector is not finite"},
    }
    teacher_vectors = TeacherVectors(
        texts, lambda files, device: stored_vectors(files, teacher, vectors_artifact)
    )
    student = create_encoder(
        str(encoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    )
    numbers = {"global_batch": 5, "steps": 1, "learning_rate": 1.0, "query_tokens": 16}
    for phase_data, skipped_ids in (
        ("pairs", {query, [*files.positive_rows].index(passage)}),
        ("texts", {passage, len(files.passages) + query}),
    ):
        phase = {"data": phase_data, "passage_tokens": 16, **numbers}
        if phase_data == "pairs":
            phase["hard_negatives"] = 0
        section = {"base": str(encoder), "space": "teacher", "phases": [phase]}
        [settings] = Student.model_validate_json(json.dumps(section)).phases
        batches = distillation_batches(teacher_vectors, None, settings, 0, student, WorkerShard())
        batch_ids = {int(row) for step in range(12) for row in batches.ids(step)}
        count = (
            len(files.queries)
            if phase_data == "pairs"
            else len(files.passages) + len(files.queries)
        )
        assert batch_ids == {*range(count)} - skipped_ids
