"""LangChain and LlamaIndex as clients of a real server: `make clients`."""

import asyncio

import numpy as np
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding

from stillroom.encoders.files.load import load_encoder
from support.serve_process import serve_process
from support.tiny_releases import make_release

TEXTS = ["one text", "another and a longer text, with more words", "naïve 漢字"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


@pytest.fixture(scope="module")
def server(release):
    with serve_process(release) as (url, _):
        yield {"base": f"{url}/v1", "key": "none"}


@pytest.fixture(scope="module")
def student(release):
    return load_encoder(release / "student")


def assert_same_vectors(vectors, expected):
    np.testing.assert_allclose(np.array(vectors), expected, atol=2e-6)


@pytest.fixture
def langchain(server):
    return OpenAIEmbeddings(
        model="tiny/student", base_url=server["base"], api_key=server["key"],
        check_embedding_ctx_length=False,
    )  # fmt: skip


def test_langchain_gets_the_encoder_s_own_vectors(langchain, student):
    assert_same_vectors(langchain.embed_documents(TEXTS), student.encode(TEXTS, "passage"))
    assert_same_vectors(
        asyncio.run(langchain.aembed_documents(TEXTS)), student.encode(TEXTS, "passage")
    )


def test_langchain_marks_queries_by_an_extra_field(server, student):
    embeddings = OpenAIEmbeddings(
        model="tiny/student", base_url=server["base"], api_key=server["key"],
        check_embedding_ctx_length=False, model_kwargs={"extra_body": {"input_type": "query"}},
    )  # fmt: skip
    assert_same_vectors(embeddings.embed_query(TEXTS[0]), student.encode(TEXTS[:1], "query")[0])


def test_llama_index_gets_the_encoder_s_own_vectors(server, student):
    model = OpenAIEmbedding(
        model_name="tiny/student", api_base=server["base"], api_key=server["key"],
        embed_batch_size=2,
    )  # fmt: skip
    assert_same_vectors(model.get_text_embedding_batch(TEXTS), student.encode(TEXTS, "passage"))
    assert_same_vectors(
        asyncio.run(model.aget_text_embedding(TEXTS[0])), student.encode(TEXTS[:1], "passage")[0]
    )
