"""`corpus`: sources of texts, their cleaning, and evaluation sets."""

from typing import Annotated, Literal, get_args

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from stillroom.config.base import GENERAL, DataKind, Name, Section, SetSize, SourceFields
from stillroom.config.languages import AUTO, Language
from stillroom.config.synthetic import Synthetic

# What `stillroom.data.readers.machine_texts` reads.
MachineSource = Literal["dictionaries", "terms", "manuals", "packages", "docstrings", "readmes"]
MACHINE_SOURCES: tuple[MachineSource, ...] = get_args(MachineSource)


class DocstringSource(SourceFields):
    """The documentation in this Python environment: a docstring's summary line → its rest."""

    format: Literal["docstrings"]
    packages: tuple[str, ...] | None = None  # distribution names; null: all that are installed
    min_passage_characters: PositiveInt = 200

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind."""
        return kind != "conversations"

    def locations(self) -> tuple[str, ...]:
        """Files and URIs that are read: none."""
        return ()


class ReadSource(SourceFields):
    """A source read from paths, folders, globs, s3:// and gs:// URIs, or
    hub:NAME[@REVISION][:CONFIG[:SPLIT]]."""

    on_error: Literal["fail", "skip"] = "fail"  # skip: wrong rows are left out, counted and listed


class FileSource(ReadSource):
    """Your own pairs, passages to mine negatives from, and conversations to generate."""

    # The layout of the pairs. `files` detects it from the first row of each file.
    format: Literal[
        "files", "sentence-transformers", "flag-embedding", "tevatron", "gritlm", "llm2vec"
    ]
    pairs: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()  # prompt and completion, for `joint` phases
    min_score: float | None = None  # of pairs that come with a score
    score_field: str | None = None  # the score's column; null: found by its name
    only_instruction: str | None = None  # keep only rows whose instruction is this one

    @model_validator(mode="after")
    def _names_a_file(self) -> "FileSource":
        if not (self.pairs or self.passages or self.conversations):
            raise ValueError("names no file: set pairs, passages or conversations")
        return self

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind; pairs bring passages."""
        return bool(getattr(self, kind) or (kind == "passages" and self.pairs))

    def locations(self) -> tuple[str, ...]:
        """Files and URIs that are read."""
        return (*self.pairs, *self.passages, *self.conversations)


class BeirSource(ReadSource):
    """The judged queries of a folder in BEIR layout, and its whole corpus as passages."""

    format: Literal["beir"]
    folder: str
    split: str = "train"  # reads qrels/SPLIT.tsv

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind."""
        return kind != "conversations"

    def locations(self) -> tuple[str, ...]:
        """Files and URIs that are read."""
        return (self.collection, self.queries, self.qrels)

    @property
    def collection(self) -> str:
        """The passages' file."""
        return f"{self.folder.rstrip('/')}/corpus.jsonl"

    @property
    def queries(self) -> str:
        """The queries' file."""
        return f"{self.folder.rstrip('/')}/queries.jsonl"

    @property
    def qrels(self) -> str:
        """The judgements' file."""
        return f"{self.folder.rstrip('/')}/qrels/{self.split}.tsv"


class MsMarcoSource(ReadSource):
    """MS MARCO's layout: queries, a collection, and judgements as qrels or as triples of ids.

    Triples of texts are a source of format `files`.
    """

    format: Literal["msmarco"]
    collection: str
    queries: str
    qrels: str | None = None
    triples: str | None = None

    @model_validator(mode="after")
    def _qrels_or_triples(self) -> "MsMarcoSource":
        if (self.qrels is None) == (self.triples is None):
            raise ValueError("needs either qrels or triples: set exactly one")
        return self

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind."""
        return kind != "conversations"

    def locations(self) -> tuple[str, ...]:
        """Files and URIs that are read."""
        judgements = self.qrels or self.triples
        assert judgements is not None
        return (self.collection, self.queries, judgements)


class DocumentSource(ReadSource):
    """Passages from plain text and Markdown, cut at the ends of paragraphs."""

    format: Literal["documents"]
    passages: tuple[str, ...] = Field(min_length=1)
    tokenizer: str  # the model whose tokens are counted
    passage_tokens: Annotated[int, Field(ge=16)] = 256
    overlap_tokens: NonNegativeInt = 0  # whole paragraphs repeated from the passage before

    @model_validator(mode="after")
    def _passages_are_longer_than_their_overlap(self) -> "DocumentSource":
        if self.overlap_tokens > self.passage_tokens // 2:
            raise ValueError("overlap_tokens may be at most half of passage_tokens")
        return self

    def provides(self, kind: DataKind) -> bool:
        """Whether the source has data of this kind."""
        return kind == "passages"

    def locations(self) -> tuple[str, ...]:
        """Files and URIs that are read."""
        return self.passages


Source = DocstringSource | FileSource | BeirSource | MsMarcoSource | DocumentSource


class HeldOut(SetSize):
    """A test set taken out of a source's pairs: `queries` of them, judged among `passages`."""

    source: Name | None = None  # null: the first source


class Decontamination(Section):
    """How to handle pairs that contain an evaluation set's queries or answers.

    The rules are in `stillroom.data.cleaning.contamination_index`.

    Attributes:
        ngram: words in a row that count as an overlap; shorter texts match only as a whole.
        min_overlap: fraction of the shorter text's words that must be in such overlaps.
        max_listed: pairs of each set that contamination.json shows; all are counted.
    """

    action: Literal["drop", "report"] = "drop"
    ngram: Annotated[int, Field(ge=8)] = 13
    min_overlap: Annotated[float, Field(gt=0, le=1)] = 0.6
    max_listed: NonNegativeInt = 1000


# A number for every source, or source → number. The discriminator picks one of the two before
# validation, so that a wrong value is reported once and not for both.
PairLimit = Annotated[
    Annotated[PositiveInt, Tag("number")] | Annotated[dict[Name, PositiveInt], Tag("by_source")],
    Discriminator(lambda given: "by_source" if isinstance(given, dict) else "number"),
]


class NearDuplicates(Section):
    """Drops pairs and passages that nearly copy an earlier one (MinHash).

    Attributes:
        min_jaccard: texts are near-copies when they share at least this fraction of their
            three-word sequences; at 0.8 about four words in a hundred may differ.
    """

    min_jaccard: Annotated[float, Field(ge=0.5, le=1)] = 0.8


class GeneralTexts(Section):
    """Plain text of many fields, without queries: only a student's phases on texts train on it.

    It keeps a student from forgetting what its base knew. A text of up to 16 words is encoded as a
    query, a longer one as a passage.

    Attributes:
        general: how many texts at most, evenly from all sources.
        sources: of this machine's own texts; see `stillroom data general`.
        files: your own unlabelled texts, as one more source: text, Markdown, rows of passages, or
            `hub:` data sets.
    """

    general: PositiveInt
    sources: tuple[MachineSource, ...] = MACHINE_SOURCES
    files: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_a_source(self) -> "GeneralTexts":
        if not (self.sources or self.files):
            raise ValueError("names no source: set sources or files")
        return self


class Corpus(Section):
    """Sources, cleaning and evaluation sets.

    Attributes:
        language: of all texts, evaluation sets included, for BM25; by default detected for each
            source and each set.
        near_duplicates: null keeps near-copies, because the right choice depends on the data.
            Crawled pages repeat themselves, and copies are false negatives of each other; in a
            catalogue, nearly equal texts are different answers.
        max_pairs: of each source, or source → number.
        evaluation: name → folder in BEIR layout.
        texts: general texts; null: none.
    """

    sources: dict[Name, Annotated[Source, Field(discriminator="format")]] = Field(min_length=1)
    language: Language = AUTO
    near_duplicates: NearDuplicates | None = None
    max_pairs: PairLimit | None = None
    held_out: HeldOut | None = None
    evaluation: dict[Name, str] = Field(default_factory=dict)
    decontaminate: Decontamination = Decontamination()
    synthetic: Synthetic | None = None
    texts: GeneralTexts | None = None

    @property
    def training_sources(self) -> "dict[str, Source | Synthetic]":
        """Every source by name, `synthetic` included."""
        generated = {} if self.synthetic is None else {"synthetic": self.synthetic}
        return {**self.sources, **generated}

    @model_validator(mode="after")
    def _synthetic_names_sources(self) -> "Corpus":
        if self.synthetic is None:
            return self
        if "synthetic" in self.sources:
            raise ValueError("no source may be named 'synthetic': the section makes that source")
        passages = self.synthetic.passages
        for name in (passages and passages.sources) or ():
            if name not in self.sources:
                where = "synthetic.passages.sources"
                raise ValueError(f"{where} names {name!r}, which is not a source")
        return self

    @model_validator(mode="after")
    def _general_texts_have_their_own_name(self) -> "Corpus":
        if self.texts is not None and GENERAL in self.sources:
            raise ValueError(f"no source may be named {GENERAL!r}: `texts` makes that source")
        return self

    @model_validator(mode="after")
    def _has_something_to_measure(self) -> "Corpus":
        if isinstance(self.max_pairs, dict) and (unknown := set(self.max_pairs) - {*self.sources}):
            raise ValueError(f"max_pairs names {min(unknown)!r}, which is not a source")
        if self.held_out is None and not self.evaluation:
            raise ValueError("set held_out or evaluation: without either nothing can be measured")
        if self.held_out is not None:
            if "held-out" in self.evaluation:
                raise ValueError("evaluation may not be named 'held-out': held_out makes that set")
            source = self.held_out.source or next(iter(self.sources))
            if source not in self.sources:
                raise ValueError(f"held_out.source names {source!r}, which is not a source")
            if not self.sources[source].provides("pairs"):
                raise ValueError(f"held_out.source: {source!r} has no pairs for a test set")
        return self
