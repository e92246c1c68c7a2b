"""`corpus.synthetic`: pairs that a language model writes."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stillroom.config.base import DataKind, Name, Section, SourceFields
from stillroom.config.languages import AUTO, MULTIPLE, UNKNOWN, Language


class Budget(Section):
    """The most that one artifact's requests may cost, including those answered from the cache.

    The first limit that is reached ends the requests. Prices are per million tokens.
    """

    tokens: PositiveInt | None = None  # input and output together
    cost: PositiveFloat | None = None
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_cost_needs_prices(self) -> "Budget":
        if self.cost is not None and not (self.price_in or self.price_out):
            raise ValueError("cost needs price_in and price_out, per million tokens")
        return self


TaskKind = Literal[
    "short-long", "long-short", "short-short", "long-long", "similarity", "translation"
]


class FromTasks(Section):
    """Examples of tasks that the language model invents (E5-mistral, arXiv 2401.00368)."""

    examples: dict[TaskKind, PositiveInt]  # kind of task → number of examples
    examples_per_task: PositiveInt = 3


class FromPassages(Section):
    """Queries for passages, whose positives are then chosen again (FRet of Gecko, arXiv
    2403.20327).

    Attributes:
        count: number of passages to write queries for.
        sources: take passages without a query from these; null: from all sources that have some.
        pool_size: the most passages to search for neighbours, drawn from the sources.
        max_passage_characters: of a passage that the language model reads.
        retriever: `bm25`, a model, or `teacher/NAME-KEY` for one trained before. Without its key
            the newest is used, and each new one makes the data again.
        likelihood: whether to rank neighbours by the query's likelihood too. That needs an endpoint
            whose /completions echoes a prompt with its log-probabilities; `auto` skips it where it
            is not offered, and the artifact records that.
        min_grade: the lowest grade of a positive, from 0 to 3.
        negative: the neighbour with the lowest grade, or one drawn at random.
    """

    count: PositiveInt
    sources: tuple[Name, ...] | None = None
    pool_size: PositiveInt = 50_000
    max_passage_characters: PositiveInt = 4000
    retriever: str = "bm25"
    neighbours: Annotated[int, Field(ge=2)] = 10
    likelihood: Literal["auto", "required", "off"] = "auto"
    min_grade: Annotated[int, Field(ge=0, le=3)] = 2
    negative: Literal["lowest", "sampled"] = "lowest"


class Synthetic(SourceFields):
    """Pairs that a language model writes: one more source, named `synthetic`.

    Attributes:
        languages: language → share of the examples, relative to the others. Texts that came back
            in another language are rejected. null: tasks get English texts, and a passage's query
            is in whatever language the model chooses.
        query_template: composes a pair's query from its {task} and the {query} itself, for teachers
            that get the task with every text.
        extra_body: more fields for requests; null removes a field.
    """

    model: str
    temperature: NonNegativeFloat = 1.0
    max_answer_tokens: PositiveInt = 1024
    max_grade_tokens: PositiveInt = 16
    extra_body: dict[str, Any] = Field(default_factory=dict)
    languages: dict[Language, PositiveFloat] | None = Field(default=None, min_length=1)
    query_template: str = "{query}"
    budget: Budget = Budget()
    tasks: FromTasks | None = None
    passages: FromPassages | None = None

    @model_validator(mode="after")
    def _makes_something(self) -> "Synthetic":
        if self.tasks is None and self.passages is None:
            raise ValueError("makes nothing: set tasks or passages")
        if "{query}" not in self.query_template:
            raise ValueError("query_template must hold {query}")
        return self

    @model_validator(mode="after")
    def _texts_have_one_language(self) -> "Synthetic":
        languages = self.languages or {}
        if unclear := sorted(languages.keys() & {AUTO, MULTIPLE, UNKNOWN}):
            raise ValueError(f"languages: {unclear[0]!r} is no language to write in")
        if self.tasks and "translation" in self.tasks.examples and len(languages) < 2:
            raise ValueError("examples of translation need two languages")
        return self

    @property
    def task_languages(self) -> dict[str, float]:
        """Language → share of the examples of tasks."""
        return self.languages or {"en": 1.0}

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind."""
        return kind != "conversations"
