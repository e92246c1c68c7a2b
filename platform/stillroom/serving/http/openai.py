"""The OpenAI embeddings API as schemas: bytes to a checked request, vectors to bytes.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Two fields more:
`input_type` (as Cohere and Voyage have it) and `instruction` (for instruct teachers).
"""

import base64
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from stillroom.encoders.contract import Role
from stillroom.serving.errors import ApiError
from stillroom.serving.messages import Ask, id_lists

Encoding = Literal["float", "base64"]

InputType = Literal["query", "document"]

ROLES: dict[InputType, Role] = {"query": "query", "document": "passage"}


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    # OpenAI refuses unknown fields too: a misspelt one must not change the vectors in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: str | list[str] | list[NonNegativeInt] | list[list[NonNegativeInt]] = Field(
        description="A text, texts, the token ids of a text (of this model's tokenizer, without "
        "special tokens) or those of several."
    )
    model: str
    encoding_format: Encoding | None = "float"
    dimensions: PositiveInt | None = None
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None
    input_type: InputType | None = "document"
    instruction: Annotated[
        str | None, Field(description="Task text for a model that takes one, for queries.")
    ] = None

    def texts(self) -> list[str]:
        """The texts, one for each vector to return; none where token ids were sent."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        return [text for text in inputs if isinstance(text, str)]

    def token_ids(self) -> list[list[int]] | None:
        """Each text's token ids; None where texts were sent."""
        if isinstance(self.input, str) or any(isinstance(one, str) for one in self.input):
            return None
        return id_lists(self.input)

    def ask(self) -> Ask:
        return Ask(
            self.model,
            self.texts(),
            self.token_ids(),
            ROLES[self.input_type or "document"],
            self.dimensions,
            self.instruction,
        )


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="A string of base64 where it was asked for.")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """What POST /v1/embeddings answers with."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A name that may be asked for; of two encoders, what holds for both."""

    id: str
    object: Literal["model"]
    owned_by: str
    created: int
    release: str
    policy: str
    space: str
    dims: list[int]
    max_tokens: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: Fault


def parse(body: bytes) -> EmbeddingRequest:
    """Check a request's body. Raises ApiError (400) that names the field at fault."""
    try:
        request = EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_field(error) from error
    if not request.input:
        raise ApiError(400, "input must not be empty", "input", "invalid_value")
    for place, text in enumerate(request.token_ids() or request.texts()):
        if not text:
            raise ApiError(400, f"input {place} is empty", "input", "invalid_value")
    return request


def _bad_field(error: ValidationError) -> ApiError:
    """The first fault that pydantic found, as one sentence."""
    fault = error.errors(include_url=False, include_input=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else None
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {fault['msg']}", code="invalid_json")
    if fault["type"] == "extra_forbidden":
        return ApiError(
            400, did_you_mean(str(field), EmbeddingRequest.model_fields), field, "unknown_parameter"
        )
    if fault["type"] == "missing":
        return ApiError(400, f"{field} is required", field, "missing_required_parameter")
    if field == "input":
        # Each arm of the union has its own complaint; together they explain nothing.
        message = "input must be a text, a list of texts, token ids or a list of token ids"
        return ApiError(400, message, field, "invalid_type")
    return ApiError(400, f"{field or 'the body'}: {fault['msg']}", field, "invalid_value")


def did_you_mean(key: str, allowed: Mapping[str, Any]) -> str:
    """Say that `key` is unknown, and which of the allowed it may have been."""
    nearest = get_close_matches(key, allowed, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Allowed: {', '.join(allowed)}"
    return f"unknown field {key!r}. {hint}"


def embeddings_body(
    vectors_nd: np.ndarray, tokens: int, *, model: str, encoding: Encoding | None
) -> bytes:
    """The answer's JSON. float32 vectors [n, d] in the order of the inputs; base64 is of
    little-endian float32, as OpenAI sends it and its clients read it."""
    rows = np.ascontiguousarray(vectors_nd, dtype="<f4")
    embeddings: list[Any] = list(rows)
    if encoding == "base64":
        embeddings = [base64.b64encode(row.tobytes()).decode() for row in rows]
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": embedding}
                for place, embedding in enumerate(embeddings)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
