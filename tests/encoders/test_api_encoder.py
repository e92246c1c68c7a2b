"""The API encoder against an embeddings API on a real socket that serves a tiny model's vectors."""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.config.teacher import EmbeddingsApi
from stillroom.encoders.api_encoder import (
    ApiAccess,
    ApiEncoder,
    estimate_tokens,
    split_requests,
    truncate_text,
)
from stillroom.encoders.contract import ApiContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.openai_client.requests import estimate_text_tokens
from stillroom.stages.api_teacher import api_contract
from support.make_encoder import make_encoder
from support.openai_endpoint import Endpoint, Reply, embeddings

TEXTS = [f"text number {i} " * (1 + i % 4) for i in range(10)] + ["text number 0 ", "naïve 漢字"]


@pytest.fixture(scope="module")
def model(encoder):
    return make_encoder(encoder, precision="float32").eval()


def api_encoder(url, access=None, **changes):
    fields = {"base_url": url, "model": "m", "max_tokens": 64, "dims": (64,), "space": "s"}
    contract = ApiContract(**{**fields, **changes})
    return ApiEncoder(contract, access or ApiAccess(first_pause_s=0.0))


def inputs(server):
    return [text for _, body in server.calls for text in json.loads(body)["input"]]


@pytest.mark.parametrize("max_concurrency", [1, 4])
def test_vectors_are_the_model_s_of_unit_length_and_in_order(model, tmp_path, max_concurrency):
    access = ApiAccess(
        texts_per_request=3,
        max_concurrency=max_concurrency,
        key="secret",
        cache=tmp_path / "answers",
    )
    prompts = {"query": "find: ", "passage": ""}
    with Endpoint(embeddings(model)) as server:
        api = api_encoder(server.url, access, prompts=prompts, extra_body={"query": {"kind": "q"}})
        for role in ("query", "passage"):
            expected = model.encode([prompts[role] + text for text in TEXTS], "passage")
            np.testing.assert_allclose(api.encode(TEXTS, role), expected, atol=1e-6)
        given_prompt = api.encode(TEXTS[:1], "query", prompt="other: ")
    np.testing.assert_allclose(
        given_prompt, model.encode(["other: " + TEXTS[0]], "passage"), atol=1e-6
    )
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    bodies = [json.loads(body) for _, body in server.calls]
    assert max(len(body["input"]) for body in bodies) == 3
    for body in bodies:
        assert ("kind" in body) == body["input"][0].startswith(("find", "other"))
        assert "dimensions" not in body
    # A text that comes twice is sent once, and its vector is cached for later runs.
    assert set(Counter(inputs(server)).values()) == {1}
    cached_api = api_encoder(server.url, access, prompts=prompts)  # the server is gone
    np.testing.assert_allclose(cached_api.encode(TEXTS, "passage"), expected, atol=1e-6)
    assert cached_api.spent.tokens_in > 0, "cached vectors count towards the budget"


def test_vectors_that_dot_compares_are_kept_as_the_api_sends_them(encoder, tmp_path):
    raw = make_encoder(encoder, precision="float32", similarity="dot").eval()
    expected = 3 * raw.encode(TEXTS, "passage")  # the endpoint's are three times as long
    assert np.ptp(np.linalg.norm(expected, axis=1)) > 0
    access = ApiAccess(cache=tmp_path / "answers")
    kinds = {"dot": {"similarity": "dot", "normalise": False}, "cosine": {}}
    with Endpoint(embeddings(raw)) as server:
        for kind in ("dot", "cosine", "dot"):  # one cache for both
            vectors = api_encoder(server.url, access, **kinds[kind]).encode(TEXTS, "passage")
            lengths = 1 if kind == "dot" else np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, expected / lengths, atol=1e-5)
    assert set(Counter(inputs(server)).values()) == {1}


def test_a_recipe_s_api_says_how_its_vectors_are_compared():
    api = {"base_url": "http://x", "model": "m", "dims": 4}
    for similarity, expected in ((None, ("cosine", True)), ("dot", ("dot", False))):
        fields = api if similarity is None else {**api, "similarity": similarity}
        assert api_contract(EmbeddingsApi(**fields)).comparison == expected


def test_temporary_failures_and_broken_answers_are_retried(model):
    right = embeddings(model)
    wrong = [
        Reply(429, {"Retry-After": "0"}),
        Reply(500),
        lambda body: {"data": body["data"][1:]},
        lambda body: {"data": [*body["data"], body["data"][0]]},
        lambda body: {"data": [{**item, "index": 0} for item in body["data"]]},
        lambda body: {"data": [{"index": 0, "embedding": [float("nan")] * 64}, *body["data"][:-1]]},
        lambda body: {"data": [{"index": 0, "embedding": [0.0] * 64}, *body["data"][:-1]]},
        lambda body: {"data": [{"index": 0, "embedding": [1.0]}, *body["data"][:-1]]},
        lambda body: {},
        lambda body: [],
    ]
    remaining = list(wrong)

    def answer(route, body):
        if not remaining:
            return right(route, body)
        spoil = remaining.pop(0)
        if isinstance(spoil, Reply):
            raise spoil
        return spoil(right(route, body))

    with Endpoint(answer) as server:
        api = api_encoder(server.url, ApiAccess(first_pause_s=0.0, attempts=len(wrong) + 1))
        vectors = api.encode(TEXTS, "passage")
    np.testing.assert_allclose(vectors, model.encode(TEXTS, "passage"), atol=1e-6)
    assert len(server.calls) == len(wrong) + 1


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([float("nan")] * 64, "text 2 'another': its vector is not finite"),
        ([1e39] * 64, "text 2 'another': its vector is not finite"),
        ([1e30] * 64, "text 2 'another': its vector is not finite"),  # no inner product is finite
        ([0.0] * 64, "text 2 'another': its vector has length zero"),
        ([None] * 64, "text 2 'another': its vector is not finite"),
        (None, "vectors that differ in size"),
        ([[1.0]] * 64, "vectors that differ in size"),
        ([1.0] * 63, "vectors that differ in size"),
    ],
)
def test_an_unusable_vector_is_refused_and_its_text_named(vector, reason):
    def answer(route, body):
        items = [{"index": 0, "embedding": [1.0] * 64}, {"index": 1, "embedding": vector}]
        return {"data": items}

    with Endpoint(answer) as server:
        api = api_encoder(server.url, ApiAccess(first_pause_s=0.0, attempts=2))
        with pytest.raises(UserError) as refused:
            api.encode(["one", "another"], "passage")
    assert "failed 2 times, at last with: an answer that cannot be used (" in str(refused.value)
    assert reason in str(refused.value)


def test_base64_vectors_are_read(model):
    def answer(route, body):
        answer = embeddings(model)(route, body)
        for item in answer["data"]:
            raw = np.array(item["embedding"], dtype="<f4").tobytes()
            item["embedding"] = base64.b64encode(raw).decode()
        return answer

    with Endpoint(answer) as server:
        vectors = api_encoder(server.url).encode(TEXTS, "passage")
    np.testing.assert_allclose(vectors, model.encode(TEXTS, "passage"), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "access", "reply", "message"),
    [
        ({"dims": (32,)}, {}, None, "gives vectors of 64 dims, and its contract says 32"),
        ({}, {}, Reply(400, text="input too long"), "refuses 11 texts, .*: 400 input too long"),
        ({}, {}, Reply(401, text="who?"), "answers 401: who"),
        ({}, {"attempts": 2}, Reply(503), "failed 2 times"),
        ({}, {"tokens": 50}, None, "budget: 11 texts would take up to .* and 0 are spent"),
        ({}, {"cost": 1e-6, "price_in": 1.0}, None, "budget"),
    ],
)
def test_an_unusable_api_is_refused_with_the_reason(model, changes, access, reply, message):
    def answer(route, body):
        if reply is not None:
            raise reply
        return embeddings(model)(route, body)

    with Endpoint(answer) as server, pytest.raises(UserError, match=message):
        api_encoder(server.url, ApiAccess(first_pause_s=0.0, **access), **changes).encode(
            TEXTS, "passage"
        )


def test_a_rerun_after_a_failure_sends_only_the_missing_texts(model, tmp_path):
    access = ApiAccess(
        first_pause_s=0.0,
        attempts=1,
        texts_per_request=2,
        max_concurrency=2,
        cache=tmp_path / "answers",
    )
    served = embeddings(model)
    failed = []
    number = itertools.count(1)

    def failing(route, body):
        if next(number) > 3:
            failed.extend(body["input"])
            raise Reply(500)
        return served(route, body)

    with Endpoint(failing) as server:
        with pytest.raises(UserError, match="every answer so far is kept"):
            api_encoder(server.url, access).encode(TEXTS, "passage")
        assert len(server.calls) <= 5, "no new request after an error"
        server.answer = served
        expected = model.encode(TEXTS, "passage")
        np.testing.assert_allclose(
            api_encoder(server.url, access).encode(TEXTS, "passage"), expected, atol=1e-6
        )
        sent_counts = Counter(inputs(server))
    assert sent_counts.keys() == {*TEXTS}
    assert all(count == 1 + (text in failed) for text, count in sent_counts.items())


ENCODE_SCRIPT = """
import sys
from stillroom.encoders.contract import ApiContract
from pathlib import Path
from stillroom.encoders.api_encoder import ApiAccess, ApiEncoder
assert not {"torch", "transformers", "ray"} & set(sys.modules)
url, cache, *texts = sys.argv[1:]
contract = ApiContract(base_url=url, model="m", max_tokens=64, dims=(64,), space="s")
access = ApiAccess(texts_per_request=2, max_concurrency=1, cache=Path(cache))
ApiEncoder(contract, access).encode(texts, "passage")
"""


def test_a_rerun_after_a_kill_sends_only_the_missing_texts(model, tmp_path):
    pid = []
    served = embeddings(model)

    def answer(route, body):
        if len(server.calls) == 4:
            os.kill(pid[0], signal.SIGKILL)
        return served(route, body)

    def run():
        arguments = [
            sys.executable,
            "-c",
            ENCODE_SCRIPT,
            server.url,
            str(tmp_path / "answers"),
            *TEXTS,
        ]
        process = subprocess.Popen(arguments)
        pid[:] = [process.pid]
        return process.wait(60)

    with Endpoint(answer) as server:
        assert run() == -signal.SIGKILL
        assert run() == 0
        sent_counts = Counter(inputs(server))
        killed = json.loads(server.calls[3][1])["input"]
    assert sent_counts.keys() == {*TEXTS}
    assert all(count == 1 + (text in killed) for text, count in sent_counts.items())


def test_a_folder_of_unknown_origin_sends_nothing_anywhere(model, tmp_path):
    with Endpoint(embeddings(model)) as server:
        save_encoder(api_encoder(server.url), tmp_path)
        with pytest.raises(UserError, match=f"is the API at {server.url}, to which texts would go"):
            load_encoder(tmp_path)
        for options in ({"trainable": True}, {"head": True}):
            with pytest.raises(UserError, match="whose weights are not here"):
                load_encoder(tmp_path, access=ApiAccess(), **options)
        with pytest.raises(UserError, match="whose weights are not here"):
            create_encoder(str(tmp_path), space="t")
        vectors = load_encoder(tmp_path, access=ApiAccess()).encode(TEXTS, "passage")
    np.testing.assert_allclose(vectors, model.encode(TEXTS, "passage"), atol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=40)), st.integers(1, 5), st.integers(1, 30))
def test_requests_hold_every_text_once_within_their_limits(texts, max_texts, max_tokens):
    batches = list(split_requests(texts, max_texts, max_tokens))
    assert [text for batch in batches for text in batch] == texts
    for batch in batches:
        assert 1 <= len(batch) <= max_texts
        assert len(batch) == 1 or sum(map(estimate_text_tokens, batch)) <= max_tokens


@settings(max_examples=50)
@given(st.text(max_size=60), st.integers(1, 15))
def test_a_text_is_cut_to_what_the_model_reads(text, max_tokens):
    cut = truncate_text(text, max_tokens)
    assert text.startswith(cut) or cut == " "
    assert estimate_text_tokens(cut) <= max_tokens
    if estimate_text_tokens(text) <= max_tokens:
        assert cut == (text or " ")


def test_the_estimate_equals_the_tokens_that_are_sent(model):
    with Endpoint(embeddings(model)) as server:
        api = api_encoder(server.url, prompts={"query": "find: "}, max_tokens=8)
        api.encode(TEXTS, "query")
        api.encode(TEXTS, "passage", prompt="p: ")
    texts = [(text, "query", None) for text in TEXTS] + [(text, "passage", "p: ") for text in TEXTS]
    assert estimate_tokens(api.contract, texts) == sum(map(estimate_text_tokens, inputs(server)))
