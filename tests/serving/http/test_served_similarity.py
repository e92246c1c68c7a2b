"""Vectors of models that dot compares are served with their lengths, and described as such."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from stillroom.encoders.files.load import load_encoder
from stillroom.release.reader import Release
from stillroom.serving.messages import EncodeResult
from stillroom.serving.playground.service import CompareRequest, Playground
from support.in_process_router import in_process_router
from support.tiny_releases import make_release

TEXTS = ["one text", "another text, and a longer one"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return make_release(folder / "dot", shared_space=True, similarity="dot")


@pytest.fixture(scope="module")
def url(release):
    with in_process_router(release) as url:
        yield url


@pytest.fixture(scope="module")
def encoders(release):
    return {target: load_encoder(release / target) for target in ("teacher", "student")}


def post(url, **body):
    answer = httpx.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_similarity_of_each_model_is_listed(url):
    models = httpx.get(f"{url}/v1/models").json()["data"]
    assert {model["id"]: model["similarity"] for model in models} == dict.fromkeys(
        ("tiny", "tiny/teacher", "tiny/student"), "dot"
    )


def test_vectors_keep_their_lengths_by_every_route_unless_a_request_asks_for_unit_length(
    url, encoders
):
    expected = encoders["teacher"].encode(TEXTS, "passage")
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 0.1
    answer = post(f"{url}/v1/embeddings", model="tiny/teacher", input=TEXTS)
    openai = [item["embedding"] for item in answer["data"]]
    np.testing.assert_allclose(openai, expected, atol=1e-5)
    embed = f"{url}/embed?model=tiny/teacher"
    for fields, divisor in (
        ({}, 1), ({"normalize": None}, 1), ({"normalize": False}, 1), ({"normalize": True}, lengths)
    ):  # fmt: skip
        vectors = post(embed, inputs=TEXTS, **fields)
        np.testing.assert_allclose(vectors, expected / divisor, atol=1e-5)
    unit = expected / lengths
    cosine = post(
        f"{url}/similarity?model=tiny/teacher",
        inputs={"source_sentence": TEXTS[0], "sentences": TEXTS[1:]},
    )
    np.testing.assert_allclose(cosine, unit[1:] @ unit[0], atol=1e-5)


def test_the_playground_compares_two_texts_as_an_index_would(release, encoders):
    opened = Release.open(str(release), "runs")

    async def encode(name, job):
        encoder = encoders[name.partition("/")[2]]
        vectors = encoder.encode(job.request.texts, job.request.role, dims=job.dims)
        return EncodeResult(vectors, 1, space="one", release="r")

    request = CompareRequest(release="tiny", query="a question", passage="an answer")
    playground = Playground({"tiny": opened}, None, needs_key=False)
    scores = json.loads(asyncio.run(playground.compare(request, encode)))
    query, passage = (
        {
            target: encoder.encode([text], role)[0].astype(np.float64)
            for target, encoder in encoders.items()
        }
        for text, role in (("a question", "query"), ("an answer", "passage"))
    )
    assert scores == pytest.approx(
        {
            "teacher": query["teacher"] @ passage["teacher"],
            "student": query["student"] @ passage["student"],
            "across": query["student"] @ passage["teacher"],
        },
        rel=1e-4,
        abs=1e-4,
    )
    about = json.loads(asyncio.run(playground.about()))
    assert about["releases"][0]["models"]["student"]["similarity"] == "dot"
