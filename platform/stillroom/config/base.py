"""Types that every section of a recipe uses."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
GENERAL = "general"  # the source of general texts
DataKind = Literal["pairs", "passages", "conversations"]  # what a source can provide
Similarity = Literal["cosine", "dot"]


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown fields, with values of exactly their types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Prompts(Section):
    """Texts put before every query and every passage."""

    query: str = ""
    passage: str = ""


class PromptNames(Section):
    """Names of prompts that a model's own configuration has; null keeps the role's own prompt."""

    query: str | None = None
    passage: str | None = None


def _for_queries(value: Any) -> Any:
    return {"query": value} if isinstance(value, str) else value


class PromptedModel(Section):
    """A model, and what is put before its texts.

    Attributes:
        prompts: the texts themselves; null: the model's own.
        prompt: the names of two of the model's own prompts; a single name is that for queries.
    """

    prompts: Prompts | None = None
    prompt: Annotated[PromptNames, BeforeValidator(_for_queries)] | None = None

    @model_validator(mode="after")
    def _prompts_have_one_source(self) -> Self:
        if self.prompts is not None and self.prompt is not None:
            raise ValueError(
                "prompts gives the texts and prompt names some of the model's: set one of them"
            )
        return self


class SetSize(Section):
    """How large an evaluation set is: `queries`, judged among `passages`."""

    queries: PositiveInt
    passages: PositiveInt

    @model_validator(mode="after")
    def _every_query_has_its_passage(self) -> Self:
        if self.passages < self.queries:
            raise ValueError("passages must be at least as many as queries")
        return self


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
