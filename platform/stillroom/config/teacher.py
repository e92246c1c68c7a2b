"""Teachers that are not one model on this machine: several at once, or an API."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Dropout, Prompts, Section
from stillroom.config.phases import Mntp, Phase


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


class Lora(Section):
    """Low-rank adapters (Hu et al., 2021) on every linear layer, or on those named."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Dropout = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rank_stabilised: bool = False  # rsLoRA (Kalajdzievski, 2023): alpha / sqrt(rank)
    decomposed: bool = False  # DoRA (Liu et al., 2024): magnitude and direction apart


class Latents(Section):
    """Latent attention (NV-Embed, arXiv 2405.17428), for pooling: latent."""

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # null: the states' own width, as in the paper


class Teacher(Section):
    """A model with a base, which may be trained; or several, or an API, which are as they are.

    Attributes:
        combine: members' vectors, each of unit length, in a row or as their mean.
        trust_remote_code: runs the Python that base or members bring with them.
    """

    base: str | None = None
    members: Annotated[tuple[Member, ...], Field(min_length=2)] | None = None
    combine: Literal["concatenate", "average"] = "concatenate"
    api: Api | None = None
    trust_remote_code: bool = False
    attention: Literal["causal", "bidirectional"] | None = None  # null: as the base's own
    pooling: Literal["mean", "weighted_mean", "last", "cls", "latent"] | None = None
    latents: Latents = Latents()
    echo: bool = False  # the text twice, pooled over the second (arXiv 2402.15449)
    append_eos: bool = False
    prompts: Prompts | None = None
    pool_prompt: bool = True
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: Lora | None = Lora()  # null: every weight is trained
    phases: tuple[Annotated[Phase, Field(discriminator="objective")], ...] = ()  # none: the base

    @model_validator(mode="after")
    def _one_kind(self) -> "Teacher":
        fields = type(self).model_fields
        said = {name for name, of in fields.items() if getattr(self, name) != of.default}
        kinds = {
            "base": (said - {"combine"}, "one model is not combined"),
            "members": (
                {"combine", "precision", "trust_remote_code"},
                "each member says how it encodes, and none is trained",
            ),
            "api": (set[str](), "it says itself how it encodes, and its weights are not here"),
        }
        named = [kind for kind in kinds if kind in said]
        if len(named) != 1:
            both = f"not {' and '.join(named)}" if named else "there is none"
            raise ValueError(f"name one of {', '.join(kinds)}: {both}")
        takes, why = kinds[named[0]]
        if senseless := sorted(said - takes - {*named}):
            raise ValueError(f"{named[0]} leaves no sense to {', '.join(senseless)}: {why}")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "Teacher":
        for i, phase in enumerate(self.phases):
            if isinstance(phase, Mntp) and self.echo:
                raise ValueError(
                    f"phases[{i}] is mntp, and echo shows every masked token in the other copy: "
                    "use one of them"
                )
            if phase.merge_before and (i == 0 or self.lora is None):
                raise ValueError(
                    f"phases[{i}].merge_before has nothing to merge: it needs lora, and a phase "
                    "before it"
                )
        return self
