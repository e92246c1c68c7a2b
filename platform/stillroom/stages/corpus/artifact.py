"""Reads a corpus artifact, for the other stages."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Prompts, Role
from stillroom.stages.corpus.general import read_general_texts
from stillroom.stages.corpus.languages import read_languages
from stillroom.storage.artifacts import Artifact

GUARDS_FOLDER = "guards"


@dataclass(frozen=True)
class CorpusData:
    """Texts of a corpus, and their relations.

    Attributes:
        queries: of each pair.
        positive_rows: the passage of each pair, as a row of `passages`, int64, (pairs,).
        negative_rows: passages that came with each pair as negatives, as rows of `passages`.
        pair_sources: the source of each pair, as an index in `source_names`, int16, (pairs,).
        passage_sources: the same of each passage; a positive has the source of its pair.
        source_prompts: each source's prefix of its texts; None for the model's own prompts.
        source_symmetric: whether queries and passages of each source are texts of one kind.
        source_languages: of each source, for BM25.
        conversations: (prompt, completion) of all sources.
        general_queries, general_passages: general texts, of no source and in no pair.
    """

    queries: list[str]
    positive_rows: np.ndarray
    negative_rows: list[list[int]]
    pair_sources: np.ndarray
    passages: list[str]
    passage_sources: np.ndarray
    source_names: list[str]
    source_prompts: list[Prompts | None]
    source_symmetric: list[bool]
    source_languages: list[str]
    conversations: list[tuple[str, str]]
    general_queries: list[str] = field(default_factory=list)
    general_passages: list[str] = field(default_factory=list)

    def general_texts(self, role: Role) -> list[str]:
        """The general texts that are encoded in a role: short ones as queries."""
        return self.general_queries if role == "query" else self.general_passages

    def all_texts(self, role: Role) -> list[str]:
        """The queries or passages, and then the general texts of that role."""
        own = self.queries if role == "query" else self.passages
        return [*own, *self.general_texts(role)]

    @property
    def has_general(self) -> bool:
        """Whether there are general texts."""
        return bool(self.general_queries or self.general_passages)

    def prompts_of(self, role: Role) -> list[str | None]:
        """The prompt of each query or passage, by its source; None for the model's own prompt."""
        prompts = [
            None if prompts is None else str(getattr(prompts, role))
            for prompts in self.source_prompts
        ]
        return [prompts[source] for source in self._sources_of(role)]

    def languages_of(self, role: Role) -> list[str]:
        """The language of each query or passage: its source's."""
        return [self.source_languages[source] for source in self._sources_of(role)]

    def _sources_of(self, role: Role) -> np.ndarray:
        return self.pair_sources if role == "query" else self.passage_sources

    @staticmethod
    def read(artifact: Artifact) -> "CorpusData":
        """Reads all texts of a corpus into memory."""
        pairs = pq.read_table(artifact.path / "pairs.parquet")
        passages = pq.read_table(artifact.path / "passages.parquet")
        sources = json.loads((artifact.path / "sources.json").read_text(encoding="utf-8"))
        file = artifact.path / "conversations.parquet"
        general = read_general_texts(artifact.path)
        conversations = pq.read_table(file).to_pydict() if file.exists() else {}
        return CorpusData(
            queries=pairs["query"].to_pylist(),
            positive_rows=pairs["positive"].to_numpy(),
            negative_rows=pairs["negatives"].to_pylist(),
            pair_sources=pairs["source"].to_numpy(),
            passages=passages["text"].to_pylist(),
            passage_sources=passages["source"].to_numpy(),
            source_names=[source["name"] for source in sources],
            source_prompts=[
                None if source["prompts"] is None else Prompts(**source["prompts"])
                for source in sources
            ],
            source_symmetric=[source["symmetric"] for source in sources],
            source_languages=list(read_languages(artifact)["sources"].values()),
            conversations=list(zip(*conversations.values(), strict=True)),
            general_queries=general["query"],
            general_passages=general["passage"],
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
