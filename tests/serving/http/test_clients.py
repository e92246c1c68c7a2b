"""OpenAI's and text-embeddings-inference's clients against a real socket."""

import asyncio
import base64
import gzip
import json

import httpx
import huggingface_hub
import numpy as np
import openai
import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from stillroom.encoders.files.load import load_encoder
from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import TooManyTokens
from support.in_process_router import in_process_router
from support.tiny_releases import make_release

LIMITS = RequestLimits(body_bytes=20_000, texts=8, characters=4_000, tokens=200)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


@pytest.fixture(scope="module")
def url(release):
    with in_process_router(release, limits=LIMITS) as url:
        yield url


@pytest.fixture(scope="module")
def student(release):
    return load_encoder(release / "student")


@pytest.fixture(scope="module")
def teacher(release):
    return load_encoder(release / "teacher")


@pytest.fixture
def hub(url, monkeypatch):
    # Offline mode would refuse the client's requests to this machine, too.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return lambda route: huggingface_hub.InferenceClient(model=url + route, token="none")


def post(url, path="/embed", **body):
    return httpx.post(url + path, json=body)


# OpenAI's client


@pytest.mark.parametrize(
    ("body", "raised", "status", "code"),
    [
        ({"input": "x", "dimensions": 5}, openai.BadRequestError, 400, "invalid_value"),
        ({"input": "x", "model": "other"}, openai.NotFoundError, 404, "model_not_found"),
        ({"input": ["x"] * 9}, openai.APIStatusError, 413, "request_too_large"),
        ({"input": "y" * 4001}, openai.APIStatusError, 413, "request_too_large"),
        ({"input": [5] * 201}, openai.APIStatusError, 413, "request_too_large"),
        ({"input": ["long " * 60] * 8}, openai.APIStatusError, 413, "request_too_large"),
        ({"input": "z" * 20_000}, openai.APIStatusError, 413, "request_too_large"),
    ],
)
def test_the_openai_client_raises_the_same_errors_as_at_openai(url, body, raised, status, code):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(raised) as caught:
        client.embeddings.create(**{"model": "tiny/student"} | body)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert type(caught.value) is raised
    if "dimensions" in body:
        assert "dimensions must be one of 64" in caught.value.message


def test_the_asynchronous_client_gets_vectors_in_the_order_of_the_texts(url, student):
    texts = ["a", "a much longer text than the others", "naïve 漢字", "a"]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await client.embeddings.create(
                model="tiny/student", input=texts, user="ann", dimensions=64
            )

    answer = asyncio.run(main())
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    vectors = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(vectors, student.encode(texts, "passage"), atol=2e-6)


def test_an_instruction_is_put_before_queries_in_the_trained_form(url, teacher):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.embeddings.create(
        model="tiny/teacher",
        input="how",
        extra_body={"input_type": "query", "instruction": "Find the answer"},
    )
    prompt = "Instruct: Find the answer\nQuery: "
    expected = teacher.encode(["how"], "query", prompt=prompt)
    np.testing.assert_allclose([answer.data[0].embedding], expected, atol=2e-6)
    assert answer.usage.prompt_tokens == len(
        teacher.prompter(["how"], "query", prompt=prompt)[0].ids
    )


def test_a_null_field_means_the_same_as_an_absent_field(url):
    nulls = dict.fromkeys(("dimensions", "user", "encoding_format", "input_type"))
    absent = post(url, "/v1/embeddings", model="tiny", input="x")
    null = post(url, "/v1/embeddings", model="tiny", input="x", **nulls)
    assert absent.status_code == 200 and absent.json() == null.json()


def test_a_model_is_retrieved_by_name_and_an_unknown_one_is_404(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.retrieve("tiny/teacher")
    assert (model.id, model.dims, model.max_tokens) == ("tiny/teacher", [64], 64)
    assert model.similarity == "cosine"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny/nobody")


# text-embeddings-inference's clients


def test_the_hub_client_gets_the_vectors_of_the_first_release(hub, student, teacher):
    texts = ["one text", "another"]
    vectors = hub("").feature_extraction(texts)
    np.testing.assert_allclose(vectors, teacher.encode(texts, "passage"), atol=2e-6)
    vectors = hub("/embed").feature_extraction("one text", prompt_name="query", normalize=False)
    np.testing.assert_allclose(vectors, student.encode(["one text"], "query"), atol=2e-6)
    vectors = hub("?model=tiny/teacher").feature_extraction("one text", prompt_name="query")
    np.testing.assert_allclose(vectors, teacher.encode(["one text"], "query"), atol=2e-6)


def test_a_model_s_own_prompts_are_used_by_name_and_others_refused_with_the_list(url, hub, teacher):
    prompt = teacher.contract.named_prompts["find_code"]
    vectors = hub("?model=tiny/teacher").feature_extraction("a text", prompt_name="find_code")
    expected = teacher.encode(["a text"], "query", prompt=prompt)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    [tokens] = post(
        url, "/tokenize?model=tiny/teacher", inputs="a text", prompt_name="find_code"
    ).json()
    ids = [token["id"] for token in tokens]
    assert post(url, "/decode?model=tiny/teacher", ids=ids).json() == [prompt + "a text"]
    # Queries go to the student, which has no such prompt.
    refused = post(url, inputs="a text", prompt_name="find_code")
    assert refused.status_code == 422
    assert "no prompt 'find_code'. Use one of query, document, passage" in refused.json()["error"]


def test_similarity_returns_cosines(hub, teacher):
    texts = ["a source", "a sentence", "a source"]
    similarities = hub("/similarity").sentence_similarity(texts[0], texts[1:])
    rows = teacher.encode(texts, "passage")
    np.testing.assert_allclose(similarities, rows[1:] @ rows[0], atol=1e-5)


def test_a_long_text_is_truncated_on_the_requested_side_or_refused(hub, student, url):
    long = " ".join(f"word{number}" for number in range(100))
    ids = student.tokenizer(long, add_special_tokens=False)["input_ids"]
    room = student.contract.max_tokens - 2  # CLS and SEP
    for direction, kept_ids in (("right", ids[:room]), ("left", ids[-room:])):
        vectors = hub("?model=tiny/student").feature_extraction(
            long, truncate=True, truncation_direction=direction
        )
        expected = student.encode_tokens(student.prompter.from_ids([kept_ids], "passage"))
        np.testing.assert_allclose(vectors, expected, atol=2e-6)
    refused = post(url, "/embed?model=tiny/student", inputs=long, truncate=False)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Tokenizer")
    assert f"takes at least {len(ids)} tokens, and {room} is the most" in refused.json()["error"]
    short = post(url, "/embed?model=tiny/student", inputs="a short text", truncate=False)
    assert short.status_code == 200


def test_tokens_have_offsets_and_decode_to_the_text(url):
    text = "some naïve text"
    teacher = "/tokenize?model=tiny/teacher"
    [tokens] = post(url, teacher, inputs=text, prompt_name="query").json()
    prompted = "Instruct: find\nQuery: " + text
    inner = [token for token in tokens if not token["special"]]
    assert [prompted[token["start"] : token["stop"]] for token in inner] == [
        token["text"] for token in inner
    ]
    assert post(url, "/decode", ids=[token["id"] for token in tokens]).json() == [prompted]
    assert (
        post(url, "/tokenize", inputs=[text], add_special_tokens=False).json()[0][0]["start"] == 0
    )


def test_no_more_tokens_are_described_than_a_request_may_have(url):
    assert post(url, "/tokenize", inputs=["some text"] * 8).status_code == 200
    refused = post(url, "/tokenize", inputs=["one letter, another one " * 20])
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")


def test_info_has_the_fields_that_clients_read(url):
    info = httpx.get(f"{url}/info", params={"model": "tiny/student"}).json()
    assert info["model_id"] == "tiny/student"
    assert (info["max_input_length"], info["max_client_batch_size"]) == (32, 8)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 422, "Tokenizer"),
        ("/embed", {"inputs": ""}, 422, "Tokenizer"),
        ("/embed", {"inputs": [1, "a"]}, 422, "Tokenizer"),
        ("/embed", {"inputs": [10**6]}, 422, "Tokenizer"),
        ("/embed", {"inputs": "a", "prompt_name": "code"}, 422, "Tokenizer"),
        ("/embed", {"inputs": "a", "dimensions": 3}, 422, "Tokenizer"),
        ("/embed", {"inputs": ["a"] * 9}, 413, "Validation"),
        ("/embed?model=other", {"inputs": "a"}, 404, "Validation"),
        ("/embed_all", {"inputs": "a"}, 424, "Backend"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 422, "Tokenizer"),
        ("/tokenize", {}, 422, "Tokenizer"),
        ("/tokenize", {"inputs": []}, 422, "Tokenizer"),
        ("/decode", {"ids": []}, 422, "Tokenizer"),
        ("/decode", {"ids": [10**6]}, 422, "Tokenizer"),
    ],
)
def test_refusals_have_the_error_types_of_text_embeddings_inference(url, path, body, status, kind):
    answer = post(url, path, **body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert answer.json()["error"]


def test_overload_is_429_too_many_tokens_413_and_an_internal_error_reveals_nothing(release):
    large = TooManyTokens("input", "has 9 tokens and may have 8", "Send several requests")
    errors = {
        "full": BackPressureError(3, 2),
        "large": RayTaskError(
            "encode", "", large
        ).as_instanceof_cause(),  # as a replica's error arrives
        "broken": RuntimeError("a secret"),
    }

    def fail(job):
        raise errors[job.request.texts[0]]

    with in_process_router(release, before_encode=fail) as url:
        for text, status, kind in (
            ("full", 429, "Overloaded"),
            ("large", 413, "Validation"),
            ("broken", 500, "Unhealthy"),
        ):
            tei = post(url, inputs=text)
            assert (tei.status_code, tei.json()["error_type"]) == (status, kind)
            openai_answer = post(url, "/v1/embeddings", model="tiny", input=text)
            assert (openai_answer.status_code, "secret" in openai_answer.text) == (status, False)
            assert openai_answer.headers.get("retry-after") == ("1" if status == 429 else None)


# Bodies

REQUEST = json.dumps({"model": "tiny", "input": "x"}).encode()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (gzip.compress(REQUEST), {}, 200),
        (gzip.compress(b" " * 10**8), {}, 413),  # 100 MB in 100 kB
        (gzip.compress(b" " * 10**6), {}, 413),  # 1 MB in 1 kB
        (gzip.compress(REQUEST), {"content-encoding": "x-gzip"}, 200),
        (gzip.compress(b"{}")[:-9], {}, 400),
        (gzip.compress(REQUEST) + gzip.compress(b" "), {}, 400),
        (gzip.compress(REQUEST) + b" ", {}, 400),
        (b"no gzip", {}, 400),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"{}", {"content-encoding": "gzip, gzip"}, 415),
    ],
    ids=[
        "small",
        "bomb",
        "tight bomb",
        "old name",
        "cut off",
        "two",
        "more",
        "plain",
        "brotli",
        "twice",
    ],
)
def test_a_gzip_body_is_unpacked_no_further_than_the_limit(url, content, headers, status):
    headers = {"content-encoding": "gzip", **headers}
    answer = httpx.post(f"{url}/v1/embeddings", content=content, headers=headers)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 20_000,
        b'{"inputs": "\xff\xfe", "input": "\xff\xfe"}',
        b'{"inputs": "\\ud800", "input": "\\ud800"}',
        b"",
    ],
    ids=["nested", "utf-8", "surrogate", "empty"],
)
def test_a_body_that_is_not_json_is_refused(url, path, content):
    answer = httpx.post(url + path, content=content)
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert "JSON" in answer.text


def test_a_body_without_content_length_is_read_no_further_than_the_limit(url):
    sent = []

    def endless():
        while len(sent) < 10_000:
            sent.append(1)
            yield b" " * 1000

    answer = httpx.post(f"{url}/v1/embeddings", content=endless())
    assert answer.status_code == 413


def test_base64_holds_the_same_floats(url):
    bodies = [
        post(url, "/v1/embeddings", model="tiny", input="x", encoding_format=encoding).json()
        for encoding in ("float", "base64")
    ]
    floats, packed = (body["data"][0]["embedding"] for body in bodies)
    unpacked = np.frombuffer(base64.b64decode(packed), "<f4")
    np.testing.assert_array_equal(np.float32(floats), unpacked)
