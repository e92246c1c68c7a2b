"""`teacher`: one model, trained or as it is; several models at once; or an embeddings API."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from stillroom.config.base import Dropout, PromptedModel, Prompts, Section, Similarity
from stillroom.config.phases import MntpPhase, TeacherPhase

EncoderChoice = Literal["auto", "stillroom", "sentence_transformers"]

# Fields that change our own forward, or train it; the library's is as its authors made it.
OWN_FORWARD_FIELDS = (
    "attention", "pooling", "latents", "echo", "append_eos", "pool_prompt", "layer_norm", "lora",
    "phases",
)  # fmt: skip


class TeacherMember(PromptedModel):
    """One of several teachers; null fields keep the values of its contract.

    Attributes:
        encoder: as `Teacher.encoder`.
        similarity: members are combined by their unit vectors. So a model whose vectors dot
            compares must be told to be compared by cosine.
    """

    base: str  # as a single teacher's, or an artifact such as teacher/NAME-KEY
    encoder: EncoderChoice = "auto"
    attention: Literal["causal", "bidirectional"] | None = None
    pooling: Literal["mean", "weighted_mean", "last", "cls", "max", "mean_sqrt_len"] | None = None
    append_eos: bool | None = None
    similarity: Similarity | None = None
    max_tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _library_is_not_changed(self) -> "TeacherMember":
        refuse_own_forward_fields(self)
        return self


class RequestFields(Section):
    """More fields for the requests that embed queries and passages."""

    query: dict[str, Any] = Field(default_factory=dict)
    passage: dict[str, Any] = Field(default_factory=dict)


class EmbeddingsApi(Section):
    """An embeddings API in OpenAI's format.

    This section holds what decides the vectors; the key's variable, rates and budget are in
    scale.teacher_api.

    Attributes:
        base_url: such as https://api.openai.com/v1.
        max_tokens: the most tokens of a text that the model reads. Longer texts are cut before they
            are sent, at three bytes per token, because the API's tokenizer is not available here.
        similarity: how vectors are compared. For cosine they are scaled to unit length; for dot
            they are kept as the API gives them.
        send_dimensions: requests hold `dimensions`, for models that shorten vectors on request.
        extra_body: such as {query: {input_type: query}, passage: {input_type: document}}.
    """

    base_url: str
    model: str
    dims: PositiveInt
    max_tokens: PositiveInt = 512
    similarity: Similarity = "cosine"
    prompts: Prompts = Prompts()
    send_dimensions: bool = False
    extra_body: RequestFields = RequestFields()


class Lora(Section):
    """Low-rank adapters (Hu et al., 2021), named as in peft.

    Attributes:
        use_rslora: rsLoRA (Kalajdzievski, 2023): alpha / sqrt(rank).
        use_dora: DoRA (Liu et al., 2024): separate magnitude and direction.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Dropout = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False


class Latents(Section):
    """Latent attention (NV-Embed, arXiv 2405.17428), for pooling: latent."""

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # null: the width of the states, as in the paper


class Teacher(PromptedModel):
    """A model with a base, which may be trained; or several models, or an API, used as they are.

    Attributes:
        combine: members' vectors, each of unit length, are concatenated or averaged.
        encoder: what runs the model. `stillroom`, which can also train it; `sentence_transformers`,
            which gives vectors only, as the library itself does; `auto`: stillroom, and the library
            for a folder of that library's format that stillroom cannot read, or that comes with its
            own code and is used as it is.
        trust_remote_code: runs Python code that comes with the base or the members.
        attention: null: the base's own.
        echo: gives the text twice and pools over the second copy (arXiv 2402.15449).
        pool_prompt: whether the prompt's tokens are pooled too; null: as the base's folder says.
        similarity: how vectors are compared; null: as the base's folder says, or by cosine. Vectors
            of dot keep their lengths, which its scores depend on.
        layer_norm: standardises the base's vectors, each by itself, before they are cut to fewer
            dims and scaled to unit length, as nomic-embed-text-v1.5 was trained.
        dims: the sizes that the base's vectors may be cut to (Matryoshka, arXiv 2205.13147), the
            teacher's own first; null: the base's.
        lora: null trains every weight.
        phases: none: the base as it is.
    """

    base: str | None = None
    encoder: EncoderChoice = "auto"
    members: Annotated[tuple[TeacherMember, ...], Field(min_length=2)] | None = None
    combine: Literal["concatenate", "average"] = "concatenate"
    api: EmbeddingsApi | None = None
    trust_remote_code: bool = False
    attention: Literal["causal", "bidirectional"] | None = None
    pooling: (
        Literal["mean", "weighted_mean", "last", "cls", "max", "mean_sqrt_len", "latent"] | None
    ) = None
    latents: Latents = Latents()
    echo: bool | None = None
    append_eos: bool = False
    pool_prompt: bool | None = None
    similarity: Similarity | None = None
    layer_norm: bool = False
    dims: tuple[PositiveInt, ...] | None = None
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: Lora | None = Lora()
    phases: tuple[Annotated[TeacherPhase, Field(discriminator="objective")], ...] = ()

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Teacher":
        fields = type(self).model_fields
        changed = {name for name, field in fields.items() if getattr(self, name) != field.default}
        # Kind → the fields that it can have, and why it can have no others.
        kinds = {
            "base": (changed - {"combine"}, "one model is not combined"),
            "members": (
                {"combine", "precision", "trust_remote_code"},
                "each member sets how it encodes, and members are not trained",
            ),
            "api": (set[str](), "the api section sets how it encodes, and an API is not trained"),
        }
        named = [kind for kind in kinds if kind in changed]
        if len(named) != 1:
            problem = f"not {' and '.join(named)}" if named else "none is set"
            raise ValueError(f"set one of {', '.join(kinds)}: {problem}")
        allowed, why = kinds[named[0]]
        if unused := sorted(changed - allowed - {*named}):
            raise ValueError(f"with {named[0]}, {', '.join(unused)} has no effect: {why}")
        return self

    @model_validator(mode="after")
    def _library_is_not_changed(self) -> "Teacher":
        refuse_own_forward_fields(self)
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "Teacher":
        for i, phase in enumerate(self.phases):
            if isinstance(phase, MntpPhase) and self.echo:
                raise ValueError(
                    f"phases[{i}] is mntp, and echo would show every masked token in the other "
                    "copy: use one of them"
                )
            if phase.merge_adapter_first and (i == 0 or self.lora is None):
                raise ValueError(
                    f"phases[{i}].merge_adapter_first has nothing to merge: it needs lora and an "
                    "earlier phase"
                )
        return self


def refuse_own_forward_fields(section: Teacher | TeacherMember) -> None:
    """Raises ValueError where a section sets both the library and what it cannot do."""
    if section.encoder != "sentence_transformers":
        return
    fields = type(section).model_fields
    names = [name for name in OWN_FORWARD_FIELDS if name in fields]
    changed = [name for name in names if getattr(section, name) != fields[name].default]
    if changed:
        raise ValueError(
            f"with encoder: sentence_transformers, {', '.join(changed)} has no effect: the library "
            "encodes as the model's folder says, and its weights are not trained"
        )
