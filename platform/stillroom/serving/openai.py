"""The OpenAI embeddings API as schemas: bytes to a checked request, vectors to bytes.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Two fields more:
`input_type` (as Cohere and Voyage have it) and `instruction` (for instruct teachers).
"""

import base64
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic_core import to_json

from stillroom.encoders.contract import Role

MAX_INPUTS = 2048  # a request, as at OpenAI

Encoding = Literal["float", "base64"]
InputType = Literal["query", "document"]
ROLES: dict[InputType, Role] = {"query": "query", "document": "passage"}


class ApiError(Exception):
    """An answer other than 200, in OpenAI's words.

    Args:
        status: HTTP status.
        message: what went wrong and what to do, for the person who called.
        param: the request's field at fault.
        code: a stable word for programs, such as `model_not_found`.
        retry_after_s: seconds after which the same request may pass.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(status, message, param, code, retry_after_s)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    # OpenAI refuses unknown fields too: a misspelt one must not change the vectors in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: str | list[str] | list[NonNegativeInt] | list[list[NonNegativeInt]] = Field(
        description="A text, texts, the token ids of a text (of this model's tokenizer, without "
        f"special tokens) or those of several; at most {MAX_INPUTS}."
    )
    model: str
    encoding_format: Encoding = "float"
    dimensions: PositiveInt | None = None
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None
    input_type: InputType = "document"
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
        several = [ids for ids in self.input if isinstance(ids, list)]
        return several or [[i for i in self.input if isinstance(i, int)]]


def parse(body: bytes) -> EmbeddingRequest:
    """Check a request's body. Raises ApiError (400) that names the field at fault."""
    try:
        request = EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_field(error) from error
    inputs = request.token_ids() or request.texts()
    if not request.input:
        raise ApiError(400, "input must not be empty", "input", "invalid_value")
    if len(inputs) > MAX_INPUTS:
        raise ApiError(
            400,
            f"input has {len(inputs)} entries and may have {MAX_INPUTS}; send several requests",
            "input",
            "invalid_value",
        )
    for place, text in enumerate(inputs):
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
    vectors_nd: np.ndarray, tokens: int, *, model: str, encoding: Encoding
) -> bytes:
    """The answer's JSON. float32 vectors [n, d] in the order of the inputs; base64 is of
    little-endian float32, as OpenAI sends it and its clients read it."""
    if encoding == "base64":
        raw = np.ascontiguousarray(vectors_nd, dtype="<f4")
        embeddings: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in raw]
    else:
        embeddings = vectors_nd.tolist()
    return to_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": embedding}
                for place, embedding in enumerate(embeddings)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
