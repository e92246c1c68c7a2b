"""Everything that decides how a text becomes a vector, in one file beside the weights."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from stillroom.errors import UserError

Role = Literal["query", "passage"]

Architecture = Literal["decoder", "encoder"]

Attention = Literal["causal", "bidirectional"]

Pooling = Literal["mean", "weighted_mean", "last", "cls", "latent"]

Precision = Literal["float32", "bfloat16", "float16"]

Combine = Literal["concatenate", "average"]

# A text of more tokens than there is room for: its end is cut off, its beginning, or it is refused.
Overlong = Literal["cut", "cut_left", "refuse"]

FILE = "contract.json"


class Prompts(BaseModel):
    """What is put before a text, letter for letter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = ""
    passage: str = ""


class Latents(BaseModel):
    """The sizes of latent attention; as in its paper, but for what is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # None: the states' own width


class Terms(BaseModel):
    """What whoever takes vectors must know, whatever makes them.

    Attributes:
        max_tokens: the most ids of a text, prompt, special tokens and second copy counted.
        dims: the sizes that a vector may be cut to (Matryoshka), the full one first.
        space: the id of the vector space; equal ids may share one index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: PositiveInt
    dims: tuple[PositiveInt, ...]
    normalise: bool = True
    space: str

    @model_validator(mode="after")
    def _dims_fall(self) -> Self:
        if not self.dims or list(self.dims) != sorted(set(self.dims), reverse=True):
            raise ValueError("dims must be distinct sizes, the largest first")
        return self

    def size(self, dims: int | None) -> int:
        """The size of vectors that are asked for; None is the full one.

        Raises:
            UserError: when there is no such size.
        """
        if dims is not None and dims not in self.dims:
            allowed = ", ".join(map(str, self.dims))
            raise UserError("dims", f"{dims} is not a size of this encoder", f"Use {allowed}")
        return dims or self.dims[0]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The contract in a model's folder: of `Terms` any kind, else of this one.

        Raises:
            UserError: when there is none, it is not one, or it is of another kind.
        """
        path = Path(folder) / FILE
        try:
            text = path.read_text(encoding="utf-8")
            kind = _kind(json.loads(text))
            found = kind.model_validate_json(text)
        except FileNotFoundError as fault:
            raise UserError(str(path), "does not exist", "Name an encoder's folder") from fault
        except ValidationError as fault:
            first = fault.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path}: {field}", first["msg"], "Restore the file that training wrote"
            ) from fault
        except ValueError as fault:
            raise UserError(
                str(path), f"is no JSON: {fault}", "Restore the file that training wrote"
            ) from fault
        if not isinstance(found, cls):
            raise no_weights(str(folder), found)
        return found

    def write(self, folder: str | Path) -> None:
        content = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (Path(folder) / FILE).write_text(content + "\n", encoding="utf-8")


class Contract(Terms):
    """How a model with weights encodes. Written once by training, read by everything else.

    Attributes:
        base: the model that training began with, as `locate` names it.
        latents: there when pooling is latent.
        echo: the text is given twice, and its second copy pooled.
        pool_prompt: False leaves the prompt's tokens out of pooling.
        append_eos: the ids of every text end in EOS, cut or not.
    """

    base: str
    architecture: Architecture
    attention: Attention
    pooling: Pooling
    latents: Latents | None = None
    append_eos: bool
    echo: bool = False
    prompts: Prompts = Prompts()
    pool_prompt: bool = True
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _latents_are_pooled(self) -> Self:
        if (self.pooling == "latent") != (self.latents is not None):
            raise ValueError("latents belong to latent pooling, and it needs them")
        return self


class Combined(Terms):
    """Several encoders as one (Jasper and Stella, arXiv 2412.19048): each member's vector brought
    to unit length, then all in a row or their mean, of unit length again.

    Attributes:
        members: folders inside this one, each an encoder under a contract of its own.
    """

    combine: Combine
    members: tuple[str, ...]


class Remote(Terms):
    """A model behind an embeddings API of OpenAI's schema. No key and no way to one: this file may
    come from anywhere.

    Attributes:
        asks_dims: requests name the dims, of models that cut their vectors.
        extra_body: role → more fields of a request.
    """

    base_url: str
    model: str
    prompts: Prompts = Prompts()
    asks_dims: bool = False
    extra_body: dict[Role, dict[str, Any]] = Field(default_factory=dict)


def _kind(content: Any) -> type[Terms]:
    if isinstance(content, dict) and "members" in content:
        return Combined
    return Remote if isinstance(content, dict) and "base_url" in content else Contract


def no_weights(where: str, terms: Terms) -> UserError:
    """Why something that has no weights of its own cannot be trained, exported and the like."""
    what = "is an export already, a graph of one runtime"
    if isinstance(terms, Remote):
        what = f"is the API at {terms.base_url}, whose weights are not here"
    elif isinstance(terms, Combined):
        what = "is several models, which have no weights as one"
    return UserError(where, f"{what}: it gives vectors and nothing else", "Name a model of its own")


def cannot_share_index(one: Terms, other: Terms) -> str | None:
    """Why vectors of two encoders may not lie in one index; None when they may.

    They may at the sizes that both have: a student may share only a Matryoshka prefix of its
    teacher's space.
    """
    if one.space != other.space:
        return f"their spaces differ ({one.space} and {other.space})"
    if one.normalise != other.normalise:
        return "only one of them normalises its vectors"
    if not set(one.dims) & set(other.dims):
        return f"they share no vector size ({one.dims} and {other.dims})"
    return None
