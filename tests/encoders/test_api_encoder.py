"""An embeddings API on a real socket, which serves a tiny model's own vectors."""

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

from stillroom.encoders.api_encoder import Access, RemoteEncoder, batches, estimated, shortened
from stillroom.encoders.contract import Remote
from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.errors import UserError
from stillroom.openai_client.client import token_estimate
from support.openai_endpoint import Endpoint, Reply, embeddings

TEXTS = [f"text number {i} " * (1 + i % 4) for i in range(10)] + ["text number 0 ", "naïve 漢字"]


@pytest.fixture(scope="module")
def model(encoder):
    return create(str(encoder), space="s", pooling="mean", precision="float32").eval()


def remote(url, access=None, **changes):
    told = {"base_url": url, "model": "m", "max_tokens": 64, "dims": (64,), "space": "s", **changes}
    return RemoteEncoder(Remote(**told), access or Access(first_pause_s=0.0))


def inputs(server):
    return [text for _, body in server.calls for text in json.loads(body)["input"]]


@pytest.mark.parametrize("at_once", [1, 4])
def test_vectors_are_the_model_s_own_of_unit_length_and_in_order(model, tmp_path, at_once):
    access = Access(texts=3, at_once=at_once, key="secret", cache=tmp_path / "answers")
    prompts = {"query": "find: ", "passage": ""}
    with Endpoint(embeddings(model)) as server:
        api = remote(server.url, access, prompts=prompts, extra_body={"query": {"kind": "q"}})
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
    # The same text twice is one question, and its vectors are kept for whoever comes next.
    assert set(Counter(inputs(server)).values()) == {1}
    again = remote(server.url, access, prompts=prompts)  # of a server that is gone
    np.testing.assert_allclose(again.encode(TEXTS, "passage"), expected, atol=1e-6)
    assert again.spent.tokens_in > 0, "what is kept counts into the budget"


def test_what_may_pass_is_asked_again_and_a_short_answer_is_no_answer(model):
    right = embeddings(model)
    wrong = [
        Reply(429, {"Retry-After": "0"}),
        Reply(500),
        lambda body: {"data": body["data"][1:]},
        lambda body: {"data": [*body["data"], body["data"][0]]},
        lambda body: {"data": [{**one, "index": 0} for one in body["data"]]},
        lambda body: {"data": [{"index": 0, "embedding": [float("nan")] * 64}, *body["data"][:-1]]},
        lambda body: {"data": [{"index": 0, "embedding": [0.0] * 64}, *body["data"][:-1]]},
        lambda body: {"data": [{"index": 0, "embedding": [1.0]}, *body["data"][:-1]]},
        lambda body: {},
        lambda body: [],
    ]
    left = list(wrong)

    def answer(route, body):
        if not left:
            return right(route, body)
        spoil = left.pop(0)
        if isinstance(spoil, Reply):
            raise spoil
        return spoil(right(route, body))

    with Endpoint(answer) as server:
        api = remote(server.url, Access(first_pause_s=0.0, attempts=len(wrong) + 1))
        found = api.encode(TEXTS, "passage")
    np.testing.assert_allclose(found, model.encode(TEXTS, "passage"), atol=1e-6)
    assert len(server.calls) == len(wrong) + 1


def test_vectors_in_base64_are_read_too(model):
    def answer(route, body):
        told = embeddings(model)(route, body)
        for one in told["data"]:
            raw = np.array(one["embedding"], dtype="<f4").tobytes()
            one["embedding"] = base64.b64encode(raw).decode()
        return told

    with Endpoint(answer) as server:
        found = remote(server.url).encode(TEXTS, "passage")
    np.testing.assert_allclose(found, model.encode(TEXTS, "passage"), atol=1e-6)


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
def test_an_api_that_cannot_be_used_says_why(model, changes, access, reply, message):
    def answer(route, body):
        if reply is not None:
            raise reply
        return embeddings(model)(route, body)

    with Endpoint(answer) as server, pytest.raises(UserError, match=message):
        remote(server.url, Access(first_pause_s=0.0, **access), **changes).encode(TEXTS, "passage")


def test_a_run_that_failed_pays_only_for_what_it_has_not(model, tmp_path):
    access = Access(first_pause_s=0.0, attempts=1, texts=2, at_once=2, cache=tmp_path / "answers")
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
            remote(server.url, access).encode(TEXTS, "passage")
        assert len(server.calls) <= 5, "nothing new is asked once it is lost"
        server.answer = served
        expected = model.encode(TEXTS, "passage")
        np.testing.assert_allclose(
            remote(server.url, access).encode(TEXTS, "passage"), expected, atol=1e-6
        )
        told = Counter(inputs(server))
    assert told.keys() == {*TEXTS}
    assert all(count == 1 + (text in failed) for text, count in told.items())


RUN = """
import sys
from stillroom.encoders.contract import Remote
from stillroom.encoders.remote import Access, RemoteEncoder
assert not {"torch", "transformers", "ray"} & set(sys.modules)
url, cache, *texts = sys.argv[1:]
contract = Remote(base_url=url, model="m", max_tokens=64, dims=(64,), space="s")
from pathlib import Path
RemoteEncoder(contract, Access(texts=2, at_once=1, cache=Path(cache))).encode(texts, "passage")
"""


def test_a_killed_run_s_answers_are_paid_for_once(model, tmp_path):
    pid = []
    served = embeddings(model)

    def answer(route, body):
        if len(server.calls) == 4:
            os.kill(pid[0], signal.SIGKILL)
        return served(route, body)

    def run():
        arguments = [sys.executable, "-c", RUN, server.url, str(tmp_path / "answers"), *TEXTS]
        process = subprocess.Popen(arguments)
        pid[:] = [process.pid]
        return process.wait(60)

    with Endpoint(answer) as server:
        assert run() == -signal.SIGKILL
        assert run() == 0
        told = Counter(inputs(server))
        killed = json.loads(server.calls[3][1])["input"]
    assert told.keys() == {*TEXTS}
    assert all(count == 1 + (text in killed) for text, count in told.items())


def test_a_folder_of_unknown_origin_sends_nothing_anywhere(model, tmp_path):
    with Endpoint(embeddings(model)) as server:
        save(remote(server.url), tmp_path)
        with pytest.raises(UserError, match=f"is the API at {server.url}, to which texts would go"):
            load(tmp_path)
        for asked in ({"trainable": True}, {"head": True}):
            with pytest.raises(UserError, match="whose weights are not here"):
                load(tmp_path, access=Access(), **asked)
        with pytest.raises(UserError, match="whose weights are not here"):
            create(str(tmp_path), space="t")
        found = load(tmp_path, access=Access()).encode(TEXTS, "passage")
    np.testing.assert_allclose(found, model.encode(TEXTS, "passage"), atol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=40)), st.integers(1, 5), st.integers(1, 30))
def test_requests_hold_every_text_once_and_no_more_than_they_may(texts, most, tokens):
    found = list(batches(texts, most, tokens))
    assert [text for batch in found for text in batch] == texts
    for batch in found:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(map(token_estimate, batch)) <= tokens


@settings(max_examples=50)
@given(st.text(max_size=60), st.integers(1, 15))
def test_a_text_is_cut_to_what_the_model_reads(text, most):
    cut = shortened(text, most)
    assert text.startswith(cut) or cut == " "
    assert token_estimate(cut) <= most
    if token_estimate(text) <= most:
        assert cut == (text or " ")


def test_the_estimate_is_what_is_sent(model):
    with Endpoint(embeddings(model)) as server:
        api = remote(server.url, prompts={"query": "find: "}, max_tokens=8)
        api.encode(TEXTS, "query")
        api.encode(TEXTS, "passage", prompt="p: ")
    told = [(text, "query", None) for text in TEXTS] + [(text, "passage", "p: ") for text in TEXTS]
    assert estimated(api.contract, told) == sum(map(token_estimate, inputs(server)))
