"""Everything that decides how a text becomes a vector, in one file beside the weights."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from stillroom.errors import UserError

Role = Literal["query", "passage"]
Architecture = Literal["decoder", "encoder"]
Attention = Literal["causal", "bidirectional"]
Pooling = Literal["mean", "weighted_mean", "last", "cls", "latent"]
Precision = Literal["float32", "bfloat16", "float16"]
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


class Contract(BaseModel):
    """How an encoder encodes. Written once by training, read by everything else.

    Attributes:
        base: the model that training began with, as `locate` names it.
        latents: there when pooling is latent.
        echo: the text is given twice, and its second copy pooled.
        pool_prompt: False leaves the prompt's tokens out of pooling.
        append_eos: the ids of every text end in EOS, cut or not.
        max_tokens: the most ids of a text, prompt, special tokens and second copy counted.
        dims: the sizes that a vector may be cut to (Matryoshka), the full one first.
        space: the id of the vector space; equal ids may share one index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    architecture: Architecture
    attention: Attention
    pooling: Pooling
    latents: Latents | None = None
    append_eos: bool
    echo: bool = False
    prompts: Prompts = Prompts()
    pool_prompt: bool = True
    max_tokens: PositiveInt
    dims: tuple[PositiveInt, ...]
    normalise: bool = True
    precision: Precision = "float32"
    space: str

    @model_validator(mode="after")
    def _dims_fall(self) -> "Contract":
        if not self.dims or list(self.dims) != sorted(set(self.dims), reverse=True):
            raise ValueError("dims must be distinct sizes, the largest first")
        return self

    @model_validator(mode="after")
    def _latents_are_pooled(self) -> "Contract":
        if (self.pooling == "latent") != (self.latents is not None):
            raise ValueError("latents belong to latent pooling, and it needs them")
        return self

    @staticmethod
    def read(folder: str | Path) -> "Contract":
        """The contract in a model's folder.

        Raises:
            UserError: when there is none, or it is not one.
        """
        path = Path(folder) / FILE
        try:
            return Contract.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as fault:
            raise UserError(str(path), "does not exist", "Name an encoder's folder") from fault
        except ValidationError as fault:
            first = fault.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{path}: {field}", first["msg"], "Restore the file that training wrote"
            ) from fault

    def write(self, folder: str | Path) -> None:
        content = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (Path(folder) / FILE).write_text(content + "\n", encoding="utf-8")


def cannot_share_index(one: Contract, other: Contract) -> str | None:
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
