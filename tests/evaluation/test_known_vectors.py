"""Stored vectors of evaluation sets are reused, and only missing ones are encoded."""

import numpy as np
import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Comparison
from stillroom.evaluation import encode_progress, known_vectors
from stillroom.evaluation.encode_progress import encode_in_chunks
from stillroom.evaluation.evaluate import EncodedSets
from stillroom.evaluation.known_vectors import KnownVectors, write_vectors

SETS = {
    "plain": EvaluationSet(
        {"p1": "one", "p2": "two"}, {"q1": "asked", "q2": "not judged"}, {"q1": {"p1": 1}}
    ),
    "prompted": EvaluationSet(
        {"p1": "three"}, {"q1": "asked of it"}, {"q1": {"p1": 1}}, {"query": "find: "}
    ),
}


def vectors(texts):
    return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)


ENCODED = EncodedSets(
    queries={name: vectors(dataset.judged_queries()) for name, dataset in SETS.items()},
    passages={name: vectors(list(dataset.passages.values())) for name, dataset in SETS.items()},
    dims=(2,),
    comparison=Comparison("dot", normalise=False),
    texts_per_second=1.0,
)


def write_and_read(tmp_path, **options):
    file = tmp_path / "vectors" / "teacher.safetensors"
    write_vectors(file, ENCODED, SETS, **options)
    return KnownVectors.read(file, SETS)


def test_stored_vectors_are_found_by_text_and_role(tmp_path):
    known = write_and_read(tmp_path, own_prompts=True)
    assert known.missing(["one", "three", "two"], "passage") == []
    np.testing.assert_array_equal(known.get(["two", "one"], "passage"), vectors(["two", "one"]))
    assert known.missing(["not judged", "asked", "not judged"], "query") == ["not judged"]
    assert known.missing(["one"], "query") == ["one"], "a passage is another text than a query"


def test_vectors_under_a_set_s_prompt_are_not_the_encoder_s_own(tmp_path):
    known = write_and_read(tmp_path, own_prompts=False)
    assert known.missing(["asked", "asked of it"], "query") == ["asked of it"]
    assert known.missing(["three"], "passage") == []


def test_large_sets_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(known_vectors, "MAX_BYTES", 8)
    assert write_and_read(tmp_path, own_prompts=True).missing(
        ["one", "two", "three"], "passage"
    ) == [
        "one",
        "two",
    ]


def test_only_missing_texts_are_encoded_and_only_once(tmp_path):
    known, encoded = write_and_read(tmp_path, own_prompts=True), []

    def encode(texts, role):
        encoded.extend(texts)
        return vectors(texts)

    complete = known.completed_by(encode)
    for _ in range(2):
        np.testing.assert_array_equal(
            complete(["one", "new", "two", "new"], "passage"), vectors(["one", "new", "two", "new"])
        )
    assert encoded == ["new"]


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_chunks_give_the_vectors_of_one_call_and_report_every_text(count, monkeypatch):
    monkeypatch.setattr(encode_progress, "CHUNK", 4)
    texts = [chr(97 + i) * (1 + 7 * i % 5) for i in range(count)]
    reported, sizes = [], []

    def encode(chunk):
        sizes.append(len(chunk))
        return vectors(chunk) if chunk else np.empty((0, 2), np.float32)

    result = encode_in_chunks(encode, texts, reported.append)
    np.testing.assert_array_equal(result, encode(texts))
    assert sum(reported) == count
    assert max(sizes[:-1]) <= 4
