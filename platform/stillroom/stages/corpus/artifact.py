"""TODO docstring: stages/corpus/artifact.py."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Prompts, Role
from stillroom.storage.artifacts import Artifact


@dataclass(frozen=True)
class CorpusFiles:
    """What the other stages read of a corpus.

    Attributes:
        positive: passage row of each pair, int64, (pairs,).
        negatives: passage rows that came with each pair.
        source: each pair's place in `sources`, int16, (pairs,).
        passage_source: the same of each passage; that of a pair's positive is the pair's own.
        prompts: what each source puts before its texts; None for the model's own.
        symmetric: whether each source's queries and passages are of one kind.
        conversations: prompts and completions, of all sources together.
    """

    queries: list[str]
    positive: np.ndarray
    negatives: list[list[int]]
    source: np.ndarray
    passages: list[str]
    passage_source: np.ndarray
    sources: list[str]
    prompts: list[Prompts | None]
    symmetric: list[bool]
    conversations: list[tuple[str, str]]

    def prompts_of(self, role: Role) -> list[str | None]:
        """What a teacher is told before each query or passage: its source's task; None leaves it
        its own prompt."""
        known = [None if own is None else str(getattr(own, role)) for own in self.prompts]
        return [known[of] for of in (self.source if role == "query" else self.passage_source)]

    @staticmethod
    def read(artifact: Artifact) -> "CorpusFiles":
        pairs = pq.read_table(artifact.path / "pairs.parquet")
        passages = pq.read_table(artifact.path / "passages.parquet")
        sources = json.loads((artifact.path / "sources.json").read_text(encoding="utf-8"))
        file = artifact.path / "conversations.parquet"
        conversations = pq.read_table(file).to_pydict() if file.exists() else {}
        return CorpusFiles(
            queries=pairs["query"].to_pylist(),
            positive=pairs["positive"].to_numpy(),
            negatives=pairs["negatives"].to_pylist(),
            source=pairs["source"].to_numpy(),
            passages=passages["text"].to_pylist(),
            passage_source=passages["source"].to_numpy(),
            sources=[source["name"] for source in sources],
            prompts=[
                None if source["prompts"] is None else Prompts(**source["prompts"])
                for source in sources
            ],
            symmetric=[source["symmetric"] for source in sources],
            conversations=list(zip(*conversations.values(), strict=True)),
        )


def evaluation_sets(artifact: Artifact) -> dict[str, EvaluationSet]:
    folders = sorted((artifact.path / "evaluation").iterdir())
    return {folder.name: read_beir(folder) for folder in folders}
