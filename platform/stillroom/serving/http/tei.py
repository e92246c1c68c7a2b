"""The HTTP API of text-embeddings-inference (TEI) as schemas: bytes to a request, vectors to bytes.

Reference: https://huggingface.github.io/text-embeddings-inference. A prompt's name is `query`, or
`document` (or `passage`), the default: those of the contract's roles; or one that the model's own
files name, which is for queries. TEI's requests name no model:
the first one answers, or the one in the query parameter `model` or the header `x-stillroom-model`.
"""

from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from stillroom.encoders.contract import Contract, Overlong, Role
from stillroom.encoders.interface import truncate_vectors
from stillroom.serving import messages
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.inputs import (
    MAX_NAME,
    Inputs,
    Texts,
    TokenIdLists,
    TokenIds,
    id_lists,
    split_inputs,
)
from stillroom.serving.messages import Token
from stillroom.serving.service import ModelInfo

ROLES: dict[str, Role] = {"query": "query", "document": "passage", "passage": "passage"}
Direction = Literal["left", "right", "Left", "Right"]
B = TypeVar("B", bound="Body")

PromptName = Annotated[
    str,
    Field(
        max_length=MAX_NAME,
        description="query, document, passage, or a prompt that the model's files name.",
    ),
]


def prompt_role(prompt_name: str) -> Role:
    """The role that a text has by the name of its prompt."""
    return ROLES.get(prompt_name, "query")


def named_prompt(prompt_name: str | None) -> str | None:
    """The name of a prompt that is not just a role's."""
    return None if prompt_name in ROLES else prompt_name


class Body(BaseModel):
    """The body of a request. TEI ignores unknown fields, and clients send some."""

    model_config = ConfigDict(frozen=True, strict=True)


class TruncationOptions(Body):
    """How a request for vectors handles long texts."""

    truncate: bool | None = Field(
        default=None, description="false: a text that is too long is refused; else it is cut."
    )
    truncation_direction: Direction | None = "right"
    prompt_name: PromptName | None = None

    def overlong(self) -> Overlong:
        """What happens to a text with more tokens than the model takes."""
        if self.truncate is False:
            return "refuse"
        return "cut_left" if (self.truncation_direction or "").lower() == "left" else "cut"

    def role(self) -> Role:
        """The role of the named prompt."""
        return prompt_role(self.prompt_name or "document")


class EmbedRequest(TruncationOptions):
    """The body of POST /embed."""

    inputs: Inputs
    normalize: bool | None = Field(
        default=None,
        description="true: of unit length. Otherwise as the model makes them: of unit length where "
        "cosine compares them, with their own lengths where dot does.",
    )
    dimensions: PositiveInt | None = None

    def to_request(self, model: str) -> messages.EmbedRequest:
        """The request that the service takes. Raises ServingError (invalid) without any text."""
        texts, token_ids = split_inputs(self.inputs)
        _check_not_empty("inputs", token_ids or texts)
        return messages.EmbedRequest(
            model,
            texts,
            token_ids,
            self.role(),
            self.dimensions,
            overlong=self.overlong(),
            prompt_name=named_prompt(self.prompt_name),
        )


class Sentences(Body):
    """One sentence, and those to compare it with."""

    source_sentence: str
    sentences: Texts


class SimilarityRequest(Body):
    """The body of POST /similarity."""

    inputs: Sentences
    parameters: TruncationOptions | None = None

    def to_request(self, model: str) -> messages.EmbedRequest:
        """The request that the service takes, the source sentence first.

        Raises ServingError (invalid) where a text is missing.
        """
        options = self.parameters or TruncationOptions()
        _check_not_empty("sentences", self.inputs.sentences)
        _check_not_empty("source_sentence", [self.inputs.source_sentence])
        texts = [self.inputs.source_sentence, *self.inputs.sentences]
        return messages.EmbedRequest(
            model,
            texts,
            None,
            options.role(),
            overlong=options.overlong(),
            prompt_name=named_prompt(options.prompt_name),
        )


class PredictRequest(Body):
    """The body of POST /predict."""

    inputs: Any


class RerankRequest(Body):
    """The body of POST /rerank."""

    query: str
    texts: Texts


class TokenizeRequest(Body):
    """The body of POST /tokenize."""

    inputs: str | Texts
    add_special_tokens: bool = True
    prompt_name: PromptName | None = None

    def texts(self) -> list[str]:
        """The texts as a list, even if one came without a list.

        Raises ServingError (invalid) for none at all.
        """
        if self.inputs == []:
            raise _empty("inputs")
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    def role(self) -> Role | None:
        """The role whose prompt stands before each text; None: no prompt."""
        return None if self.prompt_name is None else prompt_role(self.prompt_name)


class DecodeRequest(Body):
    """The body of POST /decode."""

    ids: TokenIds | TokenIdLists
    skip_special_tokens: bool = True

    def id_lists(self) -> list[list[int]]:
        """Each text's token ids. Raises ServingError (invalid) for none at all."""
        if not self.ids:
            raise _empty("ids")
        return id_lists(self.ids)


class ErrorResponse(BaseModel):
    """Every response other than 200."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]


class SimpleToken(BaseModel):
    """A token as POST /tokenize shows it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Pooling(BaseModel):
    """How token states become one vector."""

    pooling: str


class ModelType(BaseModel):
    """TEI serves several types; here every model embeds."""

    embedding: Pooling


class Info(BaseModel):
    """The response of GET /info."""

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
    """Check a request's body. Raises ServingError (invalid) that names the invalid field."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise ServingError(ErrorKind.INVALID, f"the body is not JSON: {first['msg']}")
    field = str(first["loc"][0]) if first["loc"] else None
    message = first["msg"]
    if field in ("inputs", "ids") and len(first["loc"]) > 1 and schema is not SimilarityRequest:
        message = "must be of texts or of token ids, as the schema has it"
    raise ServingError(ErrorKind.INVALID, f"{field or 'the body'}: {message}", field)


def _check_not_empty(field: str, texts: list[Any]) -> None:
    empty = next((number for number, text in enumerate(texts) if not text), None)
    if texts and empty is None:
        return
    raise _empty(field, "" if len(texts) < 2 else f"; number {empty}, counted from 0, is")


def _empty(field: str, which: str = "") -> ServingError:
    return ServingError(ErrorKind.INVALID, f"`{field}` cannot be empty{which}", field)


def embed_body(vectors_nd: np.ndarray, *, normalize: bool) -> bytes:
    """The answer's JSON; float32 vectors [n, d] in the order of the inputs."""
    rows = truncate_vectors(vectors_nd, vectors_nd.shape[1], normalize)
    return orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)


def similarity_body(vectors_nd: np.ndarray) -> bytes:
    """The cosine of the first vector and each of the others."""
    unit = truncate_vectors(vectors_nd, vectors_nd.shape[1], True)
    return orjson.dumps(unit[1:] @ unit[0], option=orjson.OPT_SERIALIZE_NUMPY)


def tokens_body(texts: list[list[Token]]) -> bytes:
    """The tokens of each text."""
    return orjson.dumps(texts)


def info(
    model: ModelInfo, *, max_concurrent: int, max_batch_tokens: int, max_texts: int, version: str
) -> Info:
    """A model in TEI's terms. For two encoders: their common properties, else those of the first.

    TEI has no name for the pooling of an ensemble, which is shown as `mean`.
    """
    first = model.contracts[0]
    single = first if isinstance(first, Contract) else None
    return Info(
        model_id=model.id,
        model_sha=model.release.ref,
        model_dtype=single.precision if single else "float32",
        model_type=ModelType(embedding=Pooling(pooling=single.pooling if single else "mean")),
        max_concurrent_requests=max_concurrent,
        max_input_length=model.max_tokens,
        max_batch_tokens=max_batch_tokens,
        max_client_batch_size=max_texts,
        auto_truncate=True,
        tokenization_workers=1,
        version=version,
    )
