"""The HTTP routes as data, and the OpenAPI document that follows from them."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stillroom.serving.config import RequestLimits
from stillroom.serving.http import openai, tei
from stillroom.serving.http.errors import ErrorFormat, statuses


@dataclass(frozen=True)
class ApiRoute:
    """One method of one path.

    Attributes:
        name: of the handler in `handlers.Handlers`.
        error_format: the format of the route's error bodies.
        request_body, response_body: None: no body, and an answer by `response_schema`.
        response_schema: where no model describes the answer; None with no model: plain text.
        response_example: of the answer.
        open: needs no key.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    error_format: ErrorFormat = "openai"
    request_body: type[BaseModel] | None = None
    response_body: type[BaseModel] | None = None
    response_schema: dict[str, Any] | None = None
    response_example: Any = None
    open: bool = False


def _array(items: dict[str, Any], depth: int) -> dict[str, Any]:
    """The schema of an array of arrays … of items."""
    return {"type": "array", "items": _array(items, depth - 1)} if depth else items


NUMBER: dict[str, Any] = {"type": "number"}

STATUS: dict[str, Any] = {
    "type": "object",
    "properties": {"status": {"type": "string"}},
    "required": ["status"],
}

VECTORS = [[0.6, 0.8]]

ROUTES = (
    ApiRoute("POST", "/v1/embeddings", "embeddings", "Embeddings of texts: OpenAI's API",
             request_body=openai.EmbeddingRequest, response_body=openai.EmbeddingList),
    ApiRoute("POST", "/embeddings", "embeddings", "Same, as text-embeddings-inference has it too",
             request_body=openai.EmbeddingRequest, response_body=openai.EmbeddingList),
    ApiRoute("GET", "/v1/models", "models", "The models that requests may name",
             response_body=openai.ModelList),
    ApiRoute("GET", "/v1/models/{model}", "model", "One of the models", response_body=openai.Model),
    ApiRoute("GET", "/metrics", "prometheus", "Metrics for Prometheus"),
    ApiRoute("GET", "/healthz", "healthz", "Whether requests can be answered",
             response_schema=STATUS, response_example={"status": "ok"}, open=True),
    ApiRoute("GET", "/openapi.json", "openapi", "This document",
             response_schema={"type": "object"}, open=True),
    ApiRoute("POST", "/embed", "embed", "Embeddings of texts: text-embeddings-inference's API",
             "tei", tei.EmbedRequest,
             response_schema=_array(NUMBER, 2), response_example=VECTORS),
    ApiRoute("POST", "/", "embed", "Same as /embed, for clients with only the server's address",
             "tei", tei.EmbedRequest,
             response_schema=_array(NUMBER, 2), response_example=VECTORS),
    ApiRoute("POST", "/embed_all", "embed_all", "Embeddings of single tokens: not served",
             "tei", tei.EmbedRequest,
             response_schema=_array(NUMBER, 3), response_example=[VECTORS]),
    ApiRoute("POST", "/embed_sparse", "embed_sparse", "Sparse embeddings: not served",
             "tei", tei.EmbedRequest,
             response_schema=_array({"type": "object"}, 2), response_example=[[]]),
    ApiRoute("POST", "/predict", "predict", "Classes of texts: not served",
             "tei", tei.PredictRequest,
             response_schema=_array({"type": "object"}, 1), response_example=[]),
    ApiRoute("POST", "/rerank", "rerank", "Ranks of texts: not served",
             "tei", tei.RerankRequest,
             response_schema=_array({"type": "object"}, 1), response_example=[]),
    ApiRoute("POST", "/similarity", "similarity", "Cosine of one text with each of the others",
             "tei", tei.SimilarityRequest,
             response_schema=_array(NUMBER, 1), response_example=[0.9, 0.1]),
    ApiRoute("POST", "/tokenize", "tokenize", "Texts to tokens, without truncation", "tei",
             tei.TokenizeRequest,
             response_schema=_array({"$ref": "#/components/schemas/SimpleToken"}, 2),
             response_example=[[{"id": 7, "text": "a", "special": False, "start": 0, "stop": 1}]]),
    ApiRoute("POST", "/decode", "decode", "Token ids to texts",
             "tei", tei.DecodeRequest,
             response_schema=_array({"type": "string"}, 1), response_example=["a text"]),
    ApiRoute("GET", "/info", "info", "The model behind text-embeddings-inference's routes",
             "tei", response_body=tei.Info),
    ApiRoute("GET", "/health", "health", "Whether requests can be answered",
             "tei", response_schema=STATUS, response_example={"status": "ok"}, open=True),
)  # fmt: skip

# Operations need different names, also where a handler has two paths.
OTHER_OPERATION_IDS = {"/": "embed_at_root", "/embeddings": "embeddings_at_root"}

ERROR_BODIES: dict[ErrorFormat, type[BaseModel]] = {
    "openai": openai.ErrorBody,
    "tei": tei.ErrorResponse,
}


def openapi_document(
    *, model: str, dims: int, limits: RequestLimits, keys: bool, version: str, prefix: str
) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        model: a name that is served, for the examples.
        dims: one of its vector sizes.
        keys: whether callers need a key.
        prefix: of every path, where there is one.
    """
    examples = _examples(model, dims)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operation = _operation(route, examples.get(route.name, {}), model, keys)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    security = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stillroom",
            "version": version,
            "description": f"One request may have {limits.texts} texts, {limits.characters} "
            f"characters, {limits.tokens} tokens and {limits.body_bytes} bytes.",
        },
        **({"servers": [{"url": prefix}]} if prefix else {}),
        "paths": paths,
        "components": {"schemas": _schemas()} | security,
    }


def _schemas() -> dict[str, Any]:
    bodies = [
        body for route in ROUTES for body in (route.request_body, route.response_body) if body
    ]
    bodies += [*ERROR_BODIES.values(), tei.SimpleToken]
    _, schemas = models_json_schema(
        [(body, "validation") for body in dict.fromkeys(bodies)],
        ref_template="#/components/schemas/{model}",
    )
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions


def _operation(route: ApiRoute, examples: dict[str, Any], model: str, keys: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": OTHER_OPERATION_IDS.get(route.path, route.name),
        "summary": route.summary,
        "responses": _responses(route, examples.get("response", route.response_example)),
    }
    if route.request_body:
        content = _reference(route.request_body) | {"example": examples["request"]}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    if route.path.endswith("{model}"):
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"},
             "example": model}
        ]  # fmt: skip
    if route.error_format == "tei" and (route.request_body or route.name == "info"):
        operation["parameters"] = [
            {"name": "model", "in": "query", "schema": {"type": "string"},
             "description": "A name of GET /v1/models; else the first.", "example": model}
        ]  # fmt: skip
    if keys and not route.open:
        operation["security"] = [{"key": []}]
    return operation


def _reference(body: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}


def _responses(route: ApiRoute, example: Any) -> dict[str, Any]:
    if route.response_body:
        content = {"application/json": _reference(route.response_body) | {"example": example}}
    elif route.response_schema:
        content = {"application/json": {"schema": route.response_schema, "example": example}}
    else:
        content = {"text/plain": {"schema": {"type": "string"}, "example": "# HELP …"}}
    error_body = {"application/json": _reference(ERROR_BODIES[route.error_format])}
    errors = {
        str(status): {"description": "Not served", "content": error_body}
        for status in statuses(route.error_format)
    }
    return {"200": {"description": "Answered", "content": content}} | errors


def _examples(model: str, dims: int) -> dict[str, dict[str, Any]]:
    """By handler: a request that can be answered, and an answer of the same form."""
    listed = {
        "id": model, "object": "model", "owned_by": "stillroom", "created": 1795000000,
        "release": "release/help-desk-1a2b3c4d", "policy": "asymmetric", "space": "5d41402a",
        "similarity": "cosine", "dims": [dims], "max_tokens": 256,
    }  # fmt: skip
    return {
        "embeddings": {
            "request": {
                "model": model,
                "input": ["How do I sort a list?"],
                "input_type": "query",
                "dimensions": dims,
            },
            "response": {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}],
                "model": f"{model}/student",
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            },
        },
        "models": {"response": {"object": "list", "data": [listed]}},
        "model": {"response": listed},
        "embed": {"request": {"inputs": ["How do I sort a list?"], "prompt_name": "query"}},
        "embed_all": {"request": {"inputs": "a text"}},
        "embed_sparse": {"request": {"inputs": "a text"}},
        "predict": {"request": {"inputs": "a text"}},
        "rerank": {"request": {"query": "a text", "texts": ["another"]}},
        "similarity": {
            "request": {
                "inputs": {
                    "source_sentence": "How do I sort a list?",
                    "sentences": ["Call sorted on it.", "Lists are mutable."],
                }
            }
        },
        "tokenize": {"request": {"inputs": "a text"}},
        "decode": {"request": {"ids": [7, 8]}},
        "info": {
            "response": {
                "model_id": model, "model_sha": "release/help-desk-1a2b3c4d",
                "model_dtype": "float32", "model_type": {"embedding": {"pooling": "mean"}},
                "max_concurrent_requests": 228, "max_input_length": 256,
                "max_batch_tokens": 4096, "max_client_batch_size": 2048, "auto_truncate": True,
                "tokenization_workers": 1, "version": "0.1.0",
            }
        },
    }  # fmt: skip
