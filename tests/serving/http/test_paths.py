"""Paths and fields as clients write them, near misses included."""

import httpx
import pytest
from starlette.testclient import TestClient

from stillroom.serving.config import RequestLimits
from stillroom.serving.http.openapi import openapi_document
from stillroom.serving.http.paths import PlainPaths
from support.in_process_router import in_process_router
from support.tiny_releases import make_release

OPENAI_BODY = {"model": "tiny/student", "input": "a text"}
LONG = "n" * 3_000_000


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)
    with in_process_router(folder) as url:
        yield url


def post(url, path="/v1/embeddings", **body):
    return httpx.post(url + path, json=body)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings/", "//v1/embeddings", "/v1//embeddings", "/embeddings", "/embeddings/"]
)
def test_slashes_too_many_and_a_missing_v1_are_no_reason_to_refuse(url, path):
    assert post(url, path, **OPENAI_BODY).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/v1/models/tiny/student/", "/health/", "/info/", "/metrics/"]
)
def test_a_trailing_slash_is_ignored_on_every_route(url, path):
    assert httpx.get(url + path).status_code == 200


def test_under_a_prefix_paths_are_cleaned_behind_it():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    client = TestClient(PlainPaths(app), root_path="/prefix")
    client.get("/v1/models/")
    client.get("/")
    assert seen == ["/prefix/v1/models", "/prefix/"]


def test_the_schema_names_the_prefix_as_its_server(url):
    assert "servers" not in httpx.get(f"{url}/openapi.json").json()
    document = openapi_document(
        model="m", dims=8, limits=RequestLimits(), keys=False, version="1", prefix="/prefix"
    )
    assert document["servers"] == [{"url": "/prefix"}]


@pytest.mark.parametrize("path", ["/rerank", "/predict", "/embed_sparse", "/embed_all"])
def test_what_an_embedder_does_not_offer_is_refused_in_tei_s_words(url, path):
    answer = post(url, path, inputs="a", query="a", texts=["b"])
    assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")
    assert "POST /" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", "/models", 404, "Did you mean GET /v1/models?"),
        ("POST", "/v1/v1/embeddings", 404, "Did you mean POST /v1/embeddings?"),
        ("POST", "/api/embed", 404, "Did you mean POST /embed?"),
        ("POST", "/v1/embeding", 404, "Did you mean POST /v1/embeddings?"),
        ("GET", "/v1/embeddings", 405, "Send POST /v1/embeddings"),
        ("POST", "/v1/chat/completions", 404, "need a base URL with /v1"),
    ],
)
def test_a_near_miss_gets_a_hint(url, method, path, status, hint):
    answer = httpx.request(method, url + path)
    assert (answer.status_code, hint in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {**OPENAI_BODY, "model": LONG}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, "model": "m" * 500}, 404),
        ("/v1/embeddings", {**OPENAI_BODY, LONG: 1}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, "instruction": LONG}, 413),
        ("/v1/embeddings", {**OPENAI_BODY, "encoding_format": LONG}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, "input_type": LONG}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, **{str(n): n for n in range(100_000)}}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, "input": ["a", *[{}] * 100_000]}, 400),
        ("/v1/embeddings", {**OPENAI_BODY, "input": [[1]] * 400_000}, 413),
        ("/embed", {"inputs": [[]] * 400_000}, 413),
        ("/embed", {"inputs": "a", "prompt_name": LONG}, 422),
        ("/embed", {"inputs": "a", "prompt_name": "p" * 500}, 422),
        ("/embed", {"inputs": ["a", *[{}] * 100_000]}, 422),
        (f"/embed?model={'m' * 10_000}", {"inputs": "a"}, 404),
        (f"/{'m' * 10_000}", {}, 404),
    ],
)
def test_no_answer_echoes_more_than_a_little_of_what_was_sent(url, path, body, status):
    answer = post(url, path, **body)
    assert answer.status_code == status
    assert len(answer.text) < 1500


def test_a_method_that_nobody_knows_is_not_echoed_whole(url):
    answer = httpx.request("M" * 8000, f"{url}/embed")
    assert answer.status_code == 405 and len(answer.text) < 1000


def test_the_empty_one_of_several_texts_is_named(url):
    answer = post(url, "/embed", inputs=["a", "b", ""])
    assert "number 2, counted from 0" in answer.json()["error"]
    body = {"source_sentence": "", "sentences": ["a"]}
    assert "`source_sentence`" in post(url, "/similarity", inputs=body).json()["error"]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf%s", b" %s\n"])
@pytest.mark.parametrize("headers", [{}, {"content-encoding": ""}])
def test_a_byte_order_mark_and_an_empty_encoding_do_no_harm(url, content, headers):
    body = content % b'{"model": "tiny/student", "input": "a text"}'
    answer = httpx.post(f"{url}/v1/embeddings", content=body, headers=headers)
    assert answer.status_code == 200


def test_cohere_s_input_types_are_those_of_the_same_role(url):
    def vector(input_type):
        answer = post(url, model="tiny/teacher", input="a text", input_type=input_type)
        return answer.json()["data"][0]["embedding"]

    assert vector("search_query") == vector("query") != vector("document")
    assert vector("search_document") == vector("document")
