"""What every part of a recipe is: strict and frozen."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]

Dropout = Annotated[float, Field(ge=0, lt=1)]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Prompts(Section):
    query: str = ""
    passage: str = ""


class Task(Section):
    """What a source's pairs are, whatever its format.

    Attributes:
        prompts: put before this source's queries and passages, in place of the model's own;
            what instruction-tuned embedders call the task.
        symmetric: queries and passages are of one kind (paraphrases, say), and other queries
            may serve as negatives too.
    """

    prompts: Prompts | None = None
    symmetric: bool = False
    license: str | None = None  # of its texts, for the data card


Kind = Literal["pairs", "passages", "conversations"]
