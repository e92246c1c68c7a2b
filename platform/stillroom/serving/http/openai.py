"""The OpenAI embeddings API as schemas: bytes to a checked request, vectors to bytes.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Two additional fields:
`input_type` (in the words of Voyage and of Cohere) and `instruction` (for instruct teachers).
"""

import base64
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_core import from_json

from stillroom.encoders.contract import Role, Similarity
from stillroom.serving.errors import ErrorKind, ServingError, unknown_field_message
from stillroom.serving.http.inputs import Inputs, Name, split_inputs
from stillroom.serving.messages import EmbedRequest, EncodeResult
from stillroom.serving.service import ModelInfo

Encoding = Literal["float", "base64"]
InputType = Literal["query", "document", "search_query", "search_document"]
ROLES: dict[InputType, Role] = {
    "query": "query",
    "document": "passage",
    "search_query": "query",
    "search_document": "passage",
}


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    # OpenAI refuses unknown fields too: a misspelt one must not change the vectors in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: Inputs = Field(
        description="A text, texts, the token ids of a text (of this model's tokenizer, without "
        "special tokens) or those of several."
    )
    model: Name
    encoding_format: Encoding | None = "float"
    dimensions: PositiveInt | None = None
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None
    input_type: InputType | None = "document"
    instruction: Annotated[
        str | None, Field(description="Task text for a model that takes one, for queries.")
    ] = None

    def to_request(self) -> EmbedRequest:
        """The request that the service takes."""
        texts, token_ids = split_inputs(self.input)
        role = ROLES[self.input_type or "document"]
        return EmbedRequest(self.model, texts, token_ids, role, self.dimensions, self.instruction)


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="A base64 string if requested.")


class Usage(BaseModel):
    """The tokens of a request; encoding produces none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The response of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A model name that clients may use; for two encoders, their common properties."""

    id: str
    object: Literal["model"]
    owned_by: str
    created: int
    release: str
    policy: str
    space: str
    similarity: Similarity
    dims: list[int]
    max_tokens: int


class ModelList(BaseModel):
    """The response of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Error(BaseModel):
    """The problem, and the invalid field of the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every response other than 200."""

    error: Error


def parse(body: bytes) -> EmbeddingRequest:
    """Check a request's body. Raises ServingError (invalid) that names the invalid field."""
    try:
        payload = from_json(body)
    except ValueError as error:
        raise _invalid(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(payload, dict):
        raise _invalid("the body must be an object")
    # Checked here, since pydantic would list every unknown field, and there may be a million.
    for name in payload:
        if name not in EmbeddingRequest.model_fields:
            message = unknown_field_message(name, EmbeddingRequest.model_fields)
            raise _invalid(message, name, "unknown_parameter")
    try:
        request = EmbeddingRequest.model_validate(payload)
    except ValidationError as error:
        raise _field_error(error) from error
    if not request.input:
        raise _invalid("input must not be empty", "input")
    texts, token_ids = split_inputs(request.input)
    for number, text in enumerate(token_ids or texts):
        if not text:
            raise _invalid(f"input {number} is empty", "input")
    return request


def _field_error(error: ValidationError) -> ServingError:
    """The first error that pydantic found, as one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return _invalid(f"{field} is required", field, "missing_required_parameter")
    if field == "input":
        # The errors of the union's members together would explain nothing.
        message = "input must be a text, a list of texts, token ids or a list of token ids"
        return _invalid(message, field, "invalid_type")
    return _invalid(f"{field}: {first['msg']}", field)


def _invalid(message: str, param: str | None = None, code: str | None = None) -> ServingError:
    return ServingError(ErrorKind.INVALID, message, param, code)


def model_body(info: ModelInfo) -> dict[str, Any]:
    """An entry of GET /v1/models; fields beyond OpenAI's describe the vectors."""
    return {
        "id": info.id,
        "object": "model",
        "owned_by": "stillroom",
        "created": info.release.created,
        "release": info.release.ref,
        "policy": info.policy,
        "space": info.space,
        "similarity": info.similarity,
        "dims": info.dims,
        "max_tokens": info.max_tokens,
    }


def embeddings_body(result: EncodeResult, encoding: Encoding | None) -> bytes:
    """The answer's JSON. base64 is of little-endian float32, as OpenAI sends it and its clients
    read it."""
    rows = np.ascontiguousarray(result.vectors, dtype="<f4")
    embeddings: list[Any] = list(rows)
    if encoding == "base64":
        embeddings = [base64.b64encode(row.tobytes()).decode() for row in rows]
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": embedding}
                for index, embedding in enumerate(embeddings)
            ],
            "model": result.model,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
