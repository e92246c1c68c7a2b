"""The OpenAPI document matches the behaviour of the API."""

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from stillroom.serving.http.openapi import ROUTES
from support.in_process_router import in_process_router
from support.tiny_releases import make_release

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)
    with in_process_router(folder) as url:
        yield url


@pytest.fixture(scope="module")
def document(url):
    return httpx.get(f"{url}/openapi.json").json()


def test_every_route_is_described_and_every_example_is_answered(url, document):
    described = {
        (method.upper(), path) for path in document["paths"] for method in document["paths"][path]
    }
    assert described == {(route.method, route.path) for route in ROUTES}
    for method, path in described:
        operation = document["paths"][path][method.lower()]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        answer = httpx.request(
            method, url + path.format(model="tiny/student"), json=body.get("example")
        )
        refused = path in ("/embed_all", "/embed_sparse", "/predict", "/rerank")
        assert answer.status_code == (424 if refused else 200), (path, answer.text)
        assert all(
            "example" in content for content in operation["responses"]["200"]["content"].values()
        )


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_requests_are_answered_as_the_document_says(url, document, mode):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing in it can be invalid

        @hypothesis.settings(
            max_examples=6 if operation.body else 1,
            phases=[hypothesis.Phase.generate],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(checks=CHECKS)

        check()
