"""Where texts come from, and how they are cleaned and tested."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from stillroom.config.base import Kind, Name, Section, Task
from stillroom.config.synthetic import Synthetic


class Docstrings(Task):
    """The documentation in this Python environment: summary line → the rest of a docstring."""

    format: Literal["docstrings"]
    packages: tuple[str, ...] | None = None  # distribution names; null: all that are installed
    min_passage_characters: PositiveInt = 200

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        return ()


class Read(Task):
    """What is read from places: paths, folders, globs, s3:// and gs:// URIs, or
    hub:NAME[@REVISION][:CONFIG[:SPLIT]]."""

    on_error: Literal["fail", "skip"] = "fail"  # skip: wrong rows are counted, listed, left out


class Files(Read):
    """Your own pairs, more passages to mine negatives from, and conversations to generate."""

    # The layout of the pairs; files: as the first row of each file tells.
    format: Literal[
        "files", "sentence-transformers", "flag-embedding", "tevatron", "gritlm", "llm2vec"
    ]
    pairs: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()  # prompt and completion, for `joint` phases
    min_score: float | None = None  # of pairs that come with a score
    instruction: str | None = None  # of rows that name their task: only those of this one

    @model_validator(mode="after")
    def _something(self) -> "Files":
        if not (self.pairs or self.passages or self.conversations):
            raise ValueError("names no file: set pairs, passages or conversations")
        return self

    def has(self, kind: Kind) -> bool:
        return bool(getattr(self, kind) or (kind == "passages" and self.pairs))

    def places(self) -> tuple[str, ...]:
        return (*self.pairs, *self.passages, *self.conversations)


class Beir(Read):
    """The judged queries of a folder in BEIR layout, and its whole corpus as passages."""

    format: Literal["beir"]
    folder: str
    split: str = "train"  # qrels/SPLIT.tsv

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        return (self.collection, self.queries, self.qrels)

    @property
    def collection(self) -> str:
        return f"{self.folder.rstrip('/')}/corpus.jsonl"

    @property
    def queries(self) -> str:
        return f"{self.folder.rstrip('/')}/queries.jsonl"

    @property
    def qrels(self) -> str:
        return f"{self.folder.rstrip('/')}/qrels/{self.split}.tsv"


class MsMarco(Read):
    """Queries, a collection, and which answers which: qrels, or triples of ids.

    Triples of texts are `files`.
    """

    format: Literal["msmarco"]
    collection: str
    queries: str
    qrels: str | None = None
    triples: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_judgement(self) -> "MsMarco":
        if (self.qrels is None) == (self.triples is None):
            raise ValueError("names qrels and triples, or neither: set one of them")
        return self

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        judged = self.qrels or self.triples
        assert judged is not None
        return (self.collection, self.queries, judged)


class Documents(Read):
    """Passages of plain text and Markdown, cut where paragraphs end."""

    format: Literal["documents"]
    passages: tuple[str, ...] = Field(min_length=1)
    tokenizer: str  # the model whose tokens are counted
    passage_tokens: Annotated[int, Field(ge=16)] = 256
    overlap_tokens: NonNegativeInt = 0  # with the passage before, as whole paragraphs

    @model_validator(mode="after")
    def _there_is_more_than_overlap(self) -> "Documents":
        if self.overlap_tokens > self.passage_tokens // 2:
            raise ValueError("overlap_tokens may be half of passage_tokens at most")
        return self

    def has(self, kind: Kind) -> bool:
        return kind == "passages"

    def places(self) -> tuple[str, ...]:
        return self.passages


Source = Docstrings | Files | Beir | MsMarco | Documents


class HeldOut(Section):
    """A test set split off a source's pairs: `queries` of them judged among `passages`."""

    queries: PositiveInt
    passages: PositiveInt
    source: Name | None = None  # null: the first

    @model_validator(mode="after")
    def _every_query_has_its_passage(self) -> "HeldOut":
        if self.passages < self.queries:
            raise ValueError("must hold at least as many passages as queries")
        return self


class Decontaminate(Section):
    """Pairs that give away what an evaluation set asks or answers; see `text.decontaminate`."""

    action: Literal["drop", "report"] = "drop"
    ngram: Annotated[int, Field(ge=8)] = 13  # words in a row; shorter texts match as a whole
    share: Annotated[float, Field(gt=0, le=1)] = 0.6  # of the shorter text's words
    listed: NonNegativeInt = 1000  # pairs of each set in contamination.json; all are counted


# Of each source, or source → number. Told apart beforehand, a wrong one is one fault and not two.
Most = Annotated[
    Annotated[PositiveInt, Tag("number")] | Annotated[dict[Name, PositiveInt], Tag("by_source")],
    Discriminator(lambda given: "by_source" if isinstance(given, dict) else "number"),
]


class NearDuplicates(Section):
    """Drops pairs and passages that are near-copies of what comes before them.

    Attributes:
        similarity: the share of three-word sequences that two texts have in common (Jaccard);
            at 0.8 some four words in a hundred may differ.
    """

    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8


class Corpus(Section):
    sources: dict[Name, Annotated[Source, Field(discriminator="format")]] = Field(min_length=1)
    # null, since it depends on the data: what was crawled repeats itself, and its copies are each
    # other's false negatives; in a catalogue texts that are nearly alike are different answers.
    near_duplicates: NearDuplicates | None = None
    max_pairs: Most | None = None
    held_out: HeldOut | None = None
    evaluation: dict[Name, str] = Field(default_factory=dict)  # set → folder in BEIR layout
    decontaminate: Decontaminate = Decontaminate()
    synthetic: Synthetic | None = None

    @model_validator(mode="after")
    def _synthetic_fits(self) -> "Corpus":
        if self.synthetic is None:
            return self
        if "synthetic" in self.sources:
            raise ValueError("no source may be named 'synthetic', which the section makes")
        wanted = self.synthetic.passages
        for name in (wanted and wanted.sources) or ():
            if name not in self.sources:
                raise ValueError(f"synthetic.passages.sources names {name!r}, which is no source")
        return self

    @property
    def trained_on(self) -> "dict[str, Source | Synthetic]":
        """Every source, the synthetic one among them."""
        own = {} if self.synthetic is None else {"synthetic": self.synthetic}
        return {**self.sources, **own}

    @model_validator(mode="after")
    def _something_to_measure(self) -> "Corpus":
        if isinstance(self.max_pairs, dict) and (unknown := set(self.max_pairs) - {*self.sources}):
            raise ValueError(f"max_pairs names {min(unknown)!r}, which is no source")
        if self.held_out is None and not self.evaluation:
            raise ValueError("set held_out or evaluation: without either nothing can be measured")
        if self.held_out is not None:
            if "held-out" in self.evaluation:
                raise ValueError("evaluation may not be named 'held-out', which held_out makes")
            asked = self.held_out.source or next(iter(self.sources))
            if asked not in self.sources:
                raise ValueError(f"held_out.source names {asked!r}, which is no source")
            if not self.sources[asked].has("pairs"):
                raise ValueError(f"held_out.source: {asked!r} has no pairs to split a test set off")
        return self
