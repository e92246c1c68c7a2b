"""Teachers that are not one model on this machine: several at once, or an API."""

from typing import Any, Literal

from pydantic import Field, PositiveInt

from stillroom.config.section import Prompts, Section


class Member(Section):
    """One of several teachers; what is null stays as its own contract has it."""

    base: str  # as of a single teacher, or an artifact such as teacher/NAME-KEY
    attention: Literal["causal", "bidirectional"] | None = None
    pooling: Literal["mean", "weighted_mean", "last", "cls"] | None = None
    append_eos: bool | None = None
    prompts: Prompts | None = None
    max_tokens: PositiveInt | None = None


class Bodies(Section):
    """More fields of the requests for queries and for passages."""

    query: dict[str, Any] = Field(default_factory=dict)
    passage: dict[str, Any] = Field(default_factory=dict)


class Api(Section):
    """An embeddings API of OpenAI's schema.

    What decides the vectors is here; the key's name, rates and budget are in scale.teacher_api.

    Attributes:
        max_tokens: what the model reads of a text. Longer ones are cut before they are sent, at
            three bytes a token, for its tokenizer is not here.
        asks_dims: requests name the dims, of models that cut their vectors when told.
        extra_body: such as {query: {input_type: query}, passage: {input_type: document}}.
    """

    base_url: str  # such as https://api.openai.com/v1
    model: str
    dims: PositiveInt
    max_tokens: PositiveInt = 512
    prompts: Prompts = Prompts()
    asks_dims: bool = False
    extra_body: Bodies = Bodies()
