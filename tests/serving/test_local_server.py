"""`stillroom serve` in a separate process, called by common clients."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx
import numpy as np
import openai
import pytest

from stillroom.encoders.files.load import load_encoder
from stillroom.errors import UserError
from stillroom.serving.telemetry import tracing
from support.in_process_cli import run_command
from support.otlp_collector import run_collector
from support.serve_process import serve_process
from support.tiny_releases import make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


@pytest.fixture(scope="module")
def collector():
    with run_collector() as address_and_spans:
        yield address_and_spans


@pytest.fixture(scope="module")
def server(release, collector):
    """The server's URL, and a function that stops it."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector[0], "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serve_process(release, OTEL_SERVICE_NAME="tested", **environment) as url_and_stop:
        yield url_and_stop


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.mark.promise("vectors")
def test_the_openai_client_gets_the_encoder_s_own_vectors(client, release):
    texts = ["one text", "another and a longer text, with more words", "naïve 漢字"]
    for name in ("teacher", "student"):
        encoder = load_encoder(release / name)
        for input_type, role in (("query", "query"), ("document", "passage")):
            answer = client.embeddings.create(  # base64, the client's default
                model=f"tiny/{name}", input=texts, extra_body={"input_type": input_type}
            )
            vectors = np.array([item.embedding for item in answer.data])
            np.testing.assert_allclose(vectors, encoder.encode(texts, role), atol=2e-6)
            assert answer.model == f"tiny/{name}"
            tokens = sum(len(text.ids) for text in encoder.prompter(texts, role))
            assert answer.usage.prompt_tokens == tokens


def test_floats_and_base64_carry_the_same_vectors(client):
    answers = [
        client.embeddings.create(model="tiny/student", input="text", encoding_format=encoding)
        for encoding in ("float", "base64")
    ]
    first, second = (answer.data[0].embedding for answer in answers)
    if isinstance(second, str):  # the client does not decode base64 that was requested explicitly
        second = np.frombuffer(base64.b64decode(second), dtype="<f4")
    np.testing.assert_allclose(first, second, atol=1e-7)


def test_token_ids_give_the_vector_of_the_text_they_stand_for(client, release):
    tokenizer = load_encoder(release / "student").tokenizer
    ids = tokenizer("some text", add_special_tokens=False)["input_ids"]
    inputs = ("some text", ids)
    answers = [client.embeddings.create(model="tiny/student", input=value) for value in inputs]
    first, second = (answer.data[0].embedding for answer in answers)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_in_one_space_documents_go_to_the_teacher_and_queries_to_the_student(url):
    for input_type, target in (("query", "student"), ("document", "teacher")):
        body = {"model": "tiny", "input": "text", "input_type": input_type}
        answer = httpx.post(f"{url}/v1/embeddings", json=body)
        assert answer.headers["x-stillroom-model"] == f"tiny/{target}"
        assert answer.headers["x-stillroom-space"] == "one"


def test_models_are_listed_with_policy_space_and_sizes(client):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["tiny", "tiny/teacher", "tiny/student"]
    assert (listed["tiny"].policy, listed["tiny"].space) == ("asymmetric", "one")
    assert (listed["tiny"].dims, listed["tiny"].max_tokens) == ([64], 32)


@pytest.mark.promise("vectors")
def test_many_callers_at_once_each_get_their_own_vectors(url, release):
    texts = [f"text number {number} " * (1 + number % 7) for number in range(60)]
    expected = load_encoder(release / "student").encode(texts, "query")

    async def post_all():
        async with httpx.AsyncClient(timeout=60) as http:
            bodies = [
                {"model": "tiny/student", "input": text, "input_type": "query"} for text in texts
            ]
            return await asyncio.gather(
                *(http.post(f"{url}/v1/embeddings", json=body) for body in bodies)
            )

    answers = asyncio.run(post_all())
    vectors = np.array([answer.json()["data"][0]["embedding"] for answer in answers])
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "tiny", "input": "x", "dimensions": 65}, 400, "dimensions"),
        ({"model": "tiny", "input": []}, 400, "input"),
        ({"model": "tiny", "input": ["x", ""]}, 400, "input"),
        ({"model": "tiny", "input": [10**9]}, 400, "input"),
        ({"model": "tiny", "input": {"text": "x"}}, 400, "input"),
        ({"model": "tiny", "inputs": "x", "input": "x"}, 400, "inputs"),
        ({"model": "tiny", "input": "x", "input_type": "passage"}, 400, "input_type"),
        ({"input": "x"}, 400, "model"),
        ({"model": "huge", "input": "x"}, 404, "model"),
    ],
)
def test_an_invalid_request_gets_openai_s_error_body(url, body, status, param):
    answer = httpx.post(f"{url}/v1/embeddings", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"]


def test_invalid_json_and_unknown_routes_get_errors_of_the_same_form(url):
    assert httpx.post(f"{url}/v1/embeddings", content=b"{").json()["error"]["code"] == (
        "invalid_json"
    )
    unknown = httpx.get(f"{url}/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")


def test_the_routes_of_text_embeddings_inference_reach_the_same_replicas(url, release):
    texts = ["some text", "another"]
    vectors = httpx.post(f"{url}/embed", json={"inputs": texts}).json()
    np.testing.assert_allclose(
        vectors, load_encoder(release / "teacher").encode(texts, "passage"), atol=2e-6
    )
    [tokens, _] = httpx.post(f"{url}/tokenize", json={"inputs": texts}).json()
    ids = [token["id"] for token in tokens]
    assert httpx.post(f"{url}/decode", json={"ids": ids}).json() == ["some text"]
    refused = httpx.post(f"{url}/decode", json={"ids": [10**6]})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Tokenizer")


def test_a_request_keeps_the_id_that_it_came_with(url):
    for headers, expected in (({"x-request-id": "r-1"}, "r-1"), ({}, None)):
        answer = httpx.get(f"{url}/v1/models", headers=headers)
        [request_id] = answer.headers.get_list("x-request-id")
        assert request_id == (expected or request_id)


def test_headers_that_serve_cannot_read_do_no_harm(url):
    for name in (b"x-request-id", b"serve_multiplexed_model_id"):
        answer = httpx.get(f"{url}/v1/models", headers={name: b"\xff"})
        assert answer.status_code == 200 and answer.headers["x-request-id"]


def test_a_request_is_a_span_of_its_sender_s_trace_with_a_child_for_each_phase(url, collector):
    trace, sender = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{sender}-01"}
    body = {"model": "tiny", "input": ["a secret text", "b"], "input_type": "query"}
    assert httpx.post(f"{url}/v1/embeddings", json=body, headers=headers).status_code == 200
    spans = collector[1].wait_for(trace, 5)
    assert spans.keys() == {"POST /v1/embeddings", "send", "tokenise", "wait", "encode"}
    assert {resource["service.name"] for _, resource in spans.values()} == {"tested"}
    root, send, *phases = (
        spans[name][0] for name in ("POST /v1/embeddings", "send", "tokenise", "wait", "encode")
    )
    assert root.parent_span_id.hex() == sender
    assert send.parent_span_id == root.span_id
    assert {phase.parent_span_id for phase in phases} == {send.span_id}
    for outer, inner in ((root, send), *((send, phase) for phase in phases)):
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    for before, after in itertools.pairwise(phases):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    attributes = {
        attribute.key: attribute.value.string_value or attribute.value.int_value
        for attribute in root.attributes
    }
    assert attributes.items() >= {
        "http.route": "/v1/embeddings", "http.response.status_code": 200, "stillroom.texts": 2,
        "stillroom.model": "tiny/student", "stillroom.policy": "asymmetric",
    }.items()  # fmt: skip
    assert "secret" not in str(spans)


def test_a_failed_request_is_a_span_with_its_status(url, collector):
    trace = "5bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert httpx.post(f"{url}/embed", json={"inputs": 5}, headers=headers).status_code == 422
    [(span, _)] = collector[1].wait_for(trace, 1).values()
    attributes = {attribute.key: attribute.value.int_value for attribute in span.attributes}
    assert (span.name, attributes["http.response.status_code"]) == ("POST /embed", 422)


def test_without_an_endpoint_the_opentelemetry_exporter_is_not_loaded():
    code = (
        "import sys; from stillroom.serving.telemetry import tracing; tracing.check_exporter();"
        "assert tracing.start_request_span('POST', '/', {}) is None;"
        "tracing.record_phases({}, {'wait': 1.0});"
        "print([name for name in sys.modules if 'opentelemetry.exporter' in name])"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_endpoint_without_the_exporter_is_refused_when_deployed(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    tracing.check_exporter()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install stillroom\[telemetry\]"):
        tracing.check_exporter()


def test_probes_and_metrics_answer(url):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/playground/about").json()["corpora"] == []  # the page explains this
    httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]})
    text = httpx.get(f"{url}/metrics").text
    assert 'stillroom_texts_total{client="anonymous",model="tiny/teacher",' in text


def test_a_release_that_failed_its_gate_is_not_served(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "failed")
    content = json.loads((copy / "release.json").read_text())
    content["gate"] = {"passed": False, "failures": ["too weak"], "overridden": False}
    (copy / "release.json").write_text(json.dumps(content))
    done = run_command("serve", copy, "--port", 0, cwd=tmp_path)
    assert done.returncode == 2
    assert "failed its gate: too weak" in done.stderr
    assert "Traceback" not in done.stderr


# The last test: it stops the server that the other tests use.
@pytest.mark.promise("routing")
def test_a_stopping_server_answers_the_requests_it_has_accepted(server):
    url, stop = server
    body = {"model": "tiny/student", "input": ["some words in a text " * 8] * 100}
    with ThreadPoolExecutor(8) as callers:
        calls = [
            callers.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=60)
            for _ in range(8)
        ]
        next(call for call in as_completed(calls) if call.result().status_code == 200)
        stop()
        answers = [call.result() for call in calls]
    # Accepted and answered, or asked to retry; none is cut off.
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code != 200)
