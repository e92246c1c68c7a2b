"""The HTTP routes as data, and the OpenAPI document that follows from them."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stillroom.serving.http import openai, tei
from stillroom.serving.http.limits import Limits

Words = Literal["openai", "tei"]  # whose error bodies a route has


@dataclass(frozen=True)
class Route:
    """One method of one path.

    Attributes:
        name: the handler's.
        takes, gives: bodies; `gives` None is the plain text.
        array: the answer is a list of (lists of) what `gives` says.
        open: needs no key.
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    words: Words = "openai"
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    answer: dict[str, Any] | None = None  # a schema, where no model says it
    example: Any = None  # of the answer
    open: bool = False


def _lists(of: dict[str, Any], depth: int) -> dict[str, Any]:
    return of if not depth else {"type": "array", "items": _lists(of, depth - 1)}


NUMBER: dict[str, Any] = {"type": "number"}

STATUS: dict[str, Any] = {
    "type": "object",
    "properties": {"status": {"type": "string"}},
    "required": ["status"],
}

VECTORS = [[0.6, 0.8]]

ROUTES = (
    Route("POST", "/v1/embeddings", "embeddings", "Vectors of texts, as OpenAI has it",
          takes=openai.EmbeddingRequest, gives=openai.EmbeddingList),
    Route("GET", "/v1/models", "models", "The names that may be asked for",
          gives=openai.ModelList),
    Route("GET", "/v1/models/{model}", "model", "One of them", gives=openai.Model),
    Route("GET", "/metrics", "prometheus", "Prometheus"),
    Route("GET", "/healthz", "healthz", "Whether requests can be answered",
          answer=STATUS, example={"status": "ok"}, open=True),
    Route("GET", "/openapi.json", "openapi", "This document", answer={"type": "object"}, open=True),
    Route("POST", "/embed", "embed", "Vectors of texts, as text-embeddings-inference has it",
          "tei", tei.EmbedRequest, answer=_lists(NUMBER, 2), example=VECTORS),
    Route("POST", "/", "embed", "The same, where a client knows only the server's address",
          "tei", tei.EmbedRequest, answer=_lists(NUMBER, 2), example=VECTORS),
    Route("POST", "/embed_all", "embed_all", "Vectors of single tokens: not served",
          "tei", tei.EmbedRequest, answer=_lists(NUMBER, 3), example=[VECTORS]),
    Route("POST", "/similarity", "similarity", "Cosines of one text and others",
          "tei", tei.SimilarityRequest, answer=_lists(NUMBER, 1), example=[0.9, 0.1]),
    Route("POST", "/tokenize", "tokenize", "Texts to tokens, none cut off", "tei",
          tei.TokenizeRequest,
          answer=_lists({"$ref": "#/components/schemas/SimpleToken"}, 2),
          example=[[{"id": 7, "text": "a", "special": False, "start": 0, "stop": 1}]]),
    Route("POST", "/decode", "decode", "Token ids to texts",
          "tei", tei.DecodeRequest, answer=_lists({"type": "string"}, 1), example=["a text"]),
    Route("GET", "/info", "info", "What answers text-embeddings-inference's routes",
          "tei", gives=tei.Info),
    Route("GET", "/health", "health", "Whether requests can be answered",
          "tei", answer=STATUS, example={"status": "ok"}, open=True),
)  # fmt: skip

ERRORS: dict[Words, tuple[type[BaseModel], tuple[int, ...]]] = {
    "openai": (openai.ErrorBody, (400, 401, 404, 413, 415, 429, 500, 503)),
    "tei": (tei.ErrorResponse, (401, 404, 413, 415, 422, 424, 429, 500, 503)),
}


def document(*, model: str, dims: int, limits: Limits, keys: bool, version: str) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        model: a name that is served, for the examples.
        dims: one of its sizes.
        keys: whether a key is asked for.
    """
    bodies = [body for route in ROUTES for body in (route.takes, route.gives) if body]
    bodies += [openai.ErrorBody, tei.ErrorResponse, tei.SimpleToken]
    _, schemas = models_json_schema(
        [(body, "validation") for body in dict.fromkeys(bodies)],
        ref_template="#/components/schemas/{model}",
    )
    examples = _examples(model, dims)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        said = examples.get(route.name, {})
        operation: dict[str, Any] = {
            "operationId": route.name if route.path != "/" else "embed_at_root",
            "summary": route.summary,
            "responses": _responses(route, said.get("answer", route.example)),
        }
        if route.takes:
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": _of(route.takes) | {"example": said["request"]}},
            }
        if route.path.endswith("{model}"):
            operation["parameters"] = [
                {"name": "model", "in": "path", "required": True, "schema": {"type": "string"},
                 "example": model}
            ]  # fmt: skip
        if route.words == "tei" and (route.takes or route.name == "info"):
            operation["parameters"] = [
                {"name": "model", "in": "query", "schema": {"type": "string"},
                 "description": "A name of GET /v1/models; else the first.", "example": model}
            ]  # fmt: skip
        if keys and not route.open:
            operation["security"] = [{"key": []}]
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
        "paths": paths,
        "components": {"schemas": schemas["$defs"]} | security,
    }


def _of(body: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}


def _responses(route: Route, example: Any) -> dict[str, Any]:
    if route.gives:
        content = {"application/json": _of(route.gives) | {"example": example}}
    elif route.answer:
        content = {"application/json": {"schema": route.answer, "example": example}}
    else:
        content = {"text/plain": {"schema": {"type": "string"}, "example": "# HELP …"}}
    body, statuses = ERRORS[route.words]
    said = {
        str(status): {"description": "Not served", "content": {"application/json": _of(body)}}
        for status in statuses
    }
    return {"200": {"description": "Answered", "content": content}} | said


def _examples(model: str, dims: int) -> dict[str, dict[str, Any]]:
    """By handler: a request that is answered, and what the answer is like."""
    listed = {
        "id": model, "object": "model", "owned_by": "stillroom", "created": 1795000000,
        "release": "release/help-desk-1a2b3c4d", "policy": "asymmetric", "space": "5d41402a",
        "dims": [dims], "max_tokens": 256,
    }  # fmt: skip
    return {
        "embeddings": {
            "request": {
                "model": model,
                "input": ["How do I sort a list?"],
                "input_type": "query",
                "dimensions": dims,
            },
            "answer": {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}],
                "model": f"{model}/student",
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            },
        },
        "models": {"answer": {"object": "list", "data": [listed]}},
        "model": {"answer": listed},
        "embed": {"request": {"inputs": ["How do I sort a list?"], "prompt_name": "query"}},
        "embed_all": {"request": {"inputs": "a text"}},
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
            "answer": {
                "model_id": model, "model_sha": "release/help-desk-1a2b3c4d",
                "model_dtype": "float32", "model_type": {"embedding": {"pooling": "mean"}},
                "max_concurrent_requests": 228, "max_input_length": 256,
                "max_batch_tokens": 4096, "max_client_batch_size": 2048, "auto_truncate": True,
                "tokenization_workers": 1, "version": "0.1.0",
            }
        },
    }  # fmt: skip
