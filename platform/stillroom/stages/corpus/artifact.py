"""Opens a corpus artifact, for the other stages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Prompts, Role
from stillroom.encoders.safe_read import map_array
from stillroom.stages.corpus.general import TABLES as GENERAL_TABLES
from stillroom.stages.corpus.languages import read_languages
from stillroom.storage.artifacts import Artifact
from stillroom.storage.columns import (
    Column,
    Joined,
    JoinedNumbers,
    Lookup,
    Ragged,
    TextColumn,
    Zipped,
)

GUARDS_FOLDER = "guards"


def _no_lengths() -> np.ndarray:
    return np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class CorpusData:
    """Texts of a corpus, and their relations, by row.

    Columns are mapped files: opening a corpus costs neither time nor memory that grows with it, and
    the processes of a machine share what they read.

    Attributes:
        queries: of each pair.
        query_lengths: in characters, int32, (pairs,).
        positive_rows: the passage of each pair, as a row of `passages`, int64, (pairs,).
        negative_rows: passages that came with each pair as negatives, as rows of `passages`.
        pair_sources: the source of each pair, as an index in `source_names`, int16, (pairs,).
        passage_lengths: in characters, int32, (passages,).
        passage_sources: the same of each passage; a positive has the source of its pair.
        source_prompts: each source's prefix of its texts; None for the model's own prompts.
        source_symmetric: whether queries and passages of each source are texts of one kind.
        source_languages: of each source, for BM25.
        conversations: (prompt, completion) of all sources.
        general_queries, general_passages: general texts, of no source and in no pair; with
            `general_query_lengths` and `general_passage_lengths`.
    """

    queries: Sequence[str]
    query_lengths: np.ndarray
    positive_rows: np.ndarray
    negative_rows: Ragged
    pair_sources: np.ndarray
    passages: Sequence[str]
    passage_lengths: np.ndarray
    passage_sources: np.ndarray
    source_names: list[str]
    source_prompts: list[Prompts | None]
    source_symmetric: list[bool]
    source_languages: list[str]
    conversations: Sequence[tuple[str, str]] = ()
    general_queries: Sequence[str] = ()
    general_query_lengths: np.ndarray = field(default_factory=_no_lengths)
    general_passages: Sequence[str] = ()
    general_passage_lengths: np.ndarray = field(default_factory=_no_lengths)

    def general_texts(self, role: Role) -> Sequence[str]:
        """The general texts that are encoded in a role: short ones as queries."""
        return self.general_queries if role == "query" else self.general_passages

    def all_texts(self, role: Role) -> Sequence[str]:
        """The queries or passages, and then the general texts of that role."""
        own = self.queries if role == "query" else self.passages
        return Joined(own, self.general_texts(role)) if self.general_texts(role) else own

    def all_lengths(self, *roles: Role) -> JoinedNumbers:
        """Characters of `all_texts` of the roles, one role after the other."""
        of_role = {
            "query": (self.query_lengths, self.general_query_lengths),
            "passage": (self.passage_lengths, self.general_passage_lengths),
        }
        return JoinedNumbers(*(lengths for role in roles for lengths in of_role[role]))

    @property
    def has_general(self) -> bool:
        """Whether there are general texts."""
        return bool(self.general_queries or self.general_passages)

    def prompts_of(self, role: Role) -> Column[str | None]:
        """The prompt of each query or passage, by its source; None for the model's own prompt."""
        prompts = [
            None if prompts is None else str(getattr(prompts, role))
            for prompts in self.source_prompts
        ]
        return Lookup(prompts, self._sources_of(role))

    def languages_of(self, role: Role) -> Column[str]:
        """The language of each query or passage: its source's."""
        return Lookup(self.source_languages, self._sources_of(role))

    def _sources_of(self, role: Role) -> np.ndarray:
        return self.pair_sources if role == "query" else self.passage_sources

    @staticmethod
    def open(artifact: Artifact) -> "CorpusData":
        """Maps the columns of a corpus.

        Raises:
            UserError: naming a file that is missing or not whole.
        """

        def texts(name: str) -> TextColumn:
            return TextColumn(artifact, name)

        def numbers(name: str) -> np.ndarray:
            return map_array(artifact.path / f"{name}.npy")

        sources = json.loads((artifact.path / "sources.json").read_text(encoding="utf-8"))
        optional: dict[str, Any] = {}
        if (artifact.path / "conversations").is_dir():
            prompts, completions = texts("conversations/prompt"), texts("conversations/completion")
            optional["conversations"] = Zipped(prompts, completions)
        if (artifact.path / GENERAL_TABLES["query"]).is_dir():
            optional["general_queries"] = texts(f"{GENERAL_TABLES['query']}/text")
            optional["general_query_lengths"] = numbers(f"{GENERAL_TABLES['query']}/length")
            optional["general_passages"] = texts(f"{GENERAL_TABLES['passage']}/text")
            optional["general_passage_lengths"] = numbers(f"{GENERAL_TABLES['passage']}/length")
        return CorpusData(
            queries=texts("pairs/query"),
            query_lengths=numbers("pairs/length"),
            positive_rows=numbers("pairs/positive"),
            negative_rows=Ragged(numbers("pairs/negative_starts"), numbers("pairs/negatives")),
            pair_sources=numbers("pairs/source"),
            passages=texts("passages/text"),
            passage_lengths=numbers("passages/length"),
            passage_sources=numbers("passages/source"),
            source_names=[source["name"] for source in sources],
            source_prompts=[
                None if source["prompts"] is None else Prompts(**source["prompts"])
                for source in sources
            ],
            source_symmetric=[source["symmetric"] for source in sources],
            source_languages=list(read_languages(artifact)["sources"].values()),
            **optional,
        )


def read_evaluation_sets(artifact: Artifact) -> dict[str, EvaluationSet]:
    """The evaluation sets of a corpus by name, the held-out one among them."""
    return _read_sets(artifact.path / "evaluation")


def read_guards(artifact: Artifact) -> dict[str, EvaluationSet]:
    """The sets from other fields than the corpus, by name; none where it was made without."""
    return _read_sets(artifact.path / GUARDS_FOLDER)


def _read_sets(folder: Path) -> dict[str, EvaluationSet]:
    folders = sorted(folder.iterdir()) if folder.is_dir() else []
    return {part.name: read_beir(part) for part in folders}
