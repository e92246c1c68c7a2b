"""Types that every section of a recipe uses."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
DataKind = Literal["pairs", "passages", "conversations"]  # what a source can provide


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown fields, with values of exactly their types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Prompts(Section):
    """Texts put before every query and every passage."""

    query: str = ""
    passage: str = ""


class SourceFields(Section):
    """Fields that sources of every format have.

    Attributes:
        prompts: replace the model's own prompts for this source's queries and passages; for
            instruction-tuned embedders, its task.
        symmetric: queries and passages are texts of one kind (paraphrases, for example), so other
            queries can serve as negatives too.
        license: of the source's texts, for the data card.
    """

    prompts: Prompts | None = None
    symmetric: bool = False
    license: str | None = None
