"""text-embeddings-inference's HTTP API as schemas, so that its clients find what they expect.

Reference: https://huggingface.github.io/text-embeddings-inference. Where it speaks of prompts by
name, there are two here, of the contract: `query`, and `document` (or `passage`), which is taken
where none is named. It has no model by name: the first release answers, or the one that the
query's `model` or the header `x-stillroom-model` asks for.
"""

from typing import Any, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from stillroom.encoders.contract import Contract, Overlong, Role, Terms
from stillroom.encoders.interface import prefix
from stillroom.serving.errors import ApiError
from stillroom.serving.messages import Ask, Token, id_lists

ROLES: dict[str, Role] = {"query": "query", "document": "passage", "passage": "passage"}

PromptName = Literal["query", "document", "passage"]

Direction = Literal["left", "right", "Left", "Right"]

TokenIds = list[NonNegativeInt]

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    # It ignores unknown fields, and clients send some.
    model_config = ConfigDict(frozen=True, strict=True)


class Cutting(Body):
    """What all that embed may say."""

    truncate: bool | None = Field(
        default=None, description="false: a text that is too long is refused; else it is cut."
    )
    truncation_direction: Direction | None = "right"
    prompt_name: PromptName | None = None

    def overlong(self) -> Overlong:
        if self.truncate is False:
            return "refuse"
        return "cut_left" if (self.truncation_direction or "").lower() == "left" else "cut"

    def role(self) -> Role:
        return ROLES[self.prompt_name or "document"]


class EmbedRequest(Cutting):
    """The body of POST /embed."""

    inputs: str | list[str] | TokenIds | list[TokenIds]
    normalize: bool | None = Field(
        default=True,
        description="false: as the model makes them; many make unit vectors.",
    )
    dimensions: PositiveInt | None = None

    def ask(self, model: str) -> Ask:
        """Raises ApiError (422) where there is no text."""
        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        texts = [text for text in inputs if isinstance(text, str)]
        ids = None if texts else id_lists(inputs)
        _not_empty("inputs", ids or texts)
        return Ask(model, texts, ids, self.role(), self.dimensions, overlong=self.overlong())


class Sentences(Body):
    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Body):
    """The body of POST /similarity."""

    inputs: Sentences
    parameters: Cutting | None = None

    def ask(self, model: str) -> Ask:
        """The source first. Raises ApiError (422) where there is no text."""
        cutting = self.parameters or Cutting()
        _not_empty("sentences", self.inputs.sentences)
        texts = [self.inputs.source_sentence, *self.inputs.sentences]
        _not_empty("source_sentence and sentences", texts)
        return Ask(model, texts, None, cutting.role(), overlong=cutting.overlong())


class TokenizeRequest(Body):
    """The body of POST /tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: PromptName | None = None

    def texts(self) -> list[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    def role(self) -> Role | None:
        return None if self.prompt_name is None else ROLES[self.prompt_name]


class DecodeRequest(Body):
    """The body of POST /decode."""

    ids: TokenIds | list[TokenIds]
    skip_special_tokens: bool = True

    def several(self) -> list[list[int]]:
        return id_lists(self.ids)


class ErrorResponse(BaseModel):
    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]


class SimpleToken(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Pooling(BaseModel):
    pooling: str


class ModelType(BaseModel):
    embedding: Pooling


class Info(BaseModel):
    """What GET /info answers with."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


def parse(schema: type[B], body: bytes) -> B:
    """Check a request's body. Raises ApiError (422) that names the field at fault."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        raise ApiError(422, f"the body is not JSON: {fault['msg']}")
    field = str(fault["loc"][0]) if fault["loc"] else None
    message = fault["msg"]
    if field == "prompt_name":
        message = f"the prompts are {', '.join(ROLES)}"
    elif field in ("inputs", "ids") and len(fault["loc"]) > 1 and schema is not SimilarityRequest:
        message = "must be of texts or of token ids, as the schema has it"
    raise ApiError(422, f"{field or 'the body'}: {message}", field)


def _not_empty(name: str, texts: list[Any]) -> None:
    if not texts or not all(texts):
        raise ApiError(422, f"`{name}` cannot be empty", name)


def embed_body(vectors_nd: np.ndarray, *, normalize: bool) -> bytes:
    """The answer's JSON; float32 vectors [n, d] in the order of the inputs."""
    rows = prefix(vectors_nd, vectors_nd.shape[1], normalize)
    return orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)


def similarity_body(vectors_nd: np.ndarray) -> bytes:
    """The cosine of the first vector and each of the others."""
    unit = prefix(vectors_nd, vectors_nd.shape[1], True)
    return orjson.dumps(unit[1:] @ unit[0], option=orjson.OPT_SERIALIZE_NUMPY)


def tokens_body(texts: list[list[Token]]) -> bytes:
    return orjson.dumps(texts)


def info(
    name: str,
    release: str,
    behind: list[Terms],
    *,
    max_concurrent: int,
    max_batch_tokens: int,
    max_texts: int,
    version: str,
) -> Info:
    """A name in its words; of two encoders, what holds for both, and else the first's. Of several
    models as one it has no word for how they pool."""
    first = behind[0]
    return Info(
        model_id=name,
        model_sha=release,
        model_dtype=first.precision if isinstance(first, Contract) else "float32",
        model_type=ModelType(
            embedding=Pooling(pooling=first.pooling if isinstance(first, Contract) else "mean")
        ),
        max_concurrent_requests=max_concurrent,
        max_input_length=min(contract.max_tokens for contract in behind),
        max_batch_tokens=max_batch_tokens,
        max_client_batch_size=max_texts,
        auto_truncate=True,
        tokenization_workers=1,
        version=version,
    )
