"""Pairs that a language model writes."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stillroom.config.base import Kind, Name, Section, Task


class Budget(Section):
    """What an artifact's requests may cost in all, those answered from the cache counted too.

    Of tokens and cost, the one that is reached first ends it. Prices are for a million tokens.
    """

    tokens: PositiveInt | None = None  # in and out together
    cost: PositiveFloat | None = None
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_cost_needs_prices(self) -> "Budget":
        if self.cost is not None and not (self.price_in or self.price_out):
            raise ValueError("cost needs price_in and price_out, for a million tokens")
        return self


TaskKind = Literal[
    "short-long", "long-short", "short-short", "long-long", "similarity", "translation"
]


class FromTasks(Section):
    """Examples of tasks that the language model thinks up (E5-mistral, arXiv 2401.00368)."""

    examples: dict[TaskKind, PositiveInt]  # kind → how many are asked for
    examples_a_task: PositiveInt = 3
    languages: tuple[str, ...] = Field(default=("English",), min_length=1)

    @model_validator(mode="after")
    def _two_languages_to_translate(self) -> "FromTasks":
        if "translation" in self.examples and len(set(self.languages)) < 2:
            raise ValueError("examples of translation need two languages")
        return self


class FromPassages(Section):
    """Queries for passages, whose positives are chosen anew (FRet of Gecko, arXiv 2403.20327).

    Attributes:
        sources: whose passages without a query are taken; null: all that have some.
        pool: the most passages that neighbours are looked for among, drawn from the sources.
        retriever: `bm25`, a model, or `teacher/NAME-KEY` for one trained before; without its
            key the newest counts, and with each new one the data is made anew.
        likelihood: whether neighbours are ranked by the query's likelihood too. It takes an
            endpoint whose /completions echoes a prompt with its log-probabilities; `auto` does
            without where it is not offered, and the artifact says so.
    """

    count: PositiveInt  # passages that a query is asked for
    sources: tuple[Name, ...] | None = None
    pool: PositiveInt = 50_000
    passage_characters: PositiveInt = 4000  # of a passage, shown to the language model
    retriever: str = "bm25"
    neighbours: Annotated[int, Field(ge=2)] = 10
    likelihood: Literal["auto", "required", "off"] = "auto"
    least_grade: Annotated[int, Field(ge=0, le=3)] = 2  # of a positive, from 0 to 3
    negative: Literal["lowest", "sampled"] = "lowest"


class Synthetic(Task):
    """Pairs that a language model writes, one more source of the name `synthetic`.

    Attributes:
        query: how a pair's query is put together, of its {task} and the {query} itself; for
            teachers that are told every text's task.
        extra_body: more fields for requests; null takes one out.
    """

    model: str
    temperature: NonNegativeFloat = 1.0
    answer_tokens: PositiveInt = 1024  # the most of one answer
    grade_tokens: PositiveInt = 16
    extra_body: dict[str, Any] = Field(default_factory=dict)
    query: str = "{query}"
    budget: Budget = Budget()
    tasks: FromTasks | None = None
    passages: FromPassages | None = None

    @model_validator(mode="after")
    def _something(self) -> "Synthetic":
        if self.tasks is None and self.passages is None:
            raise ValueError("makes nothing: set tasks or passages")
        if "{query}" not in self.query:
            raise ValueError("query must hold {query}")
        return self

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"
