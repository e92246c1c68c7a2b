"""A teacher's vectors of a corpus by row: from a `vectors` artifact, or encoded on demand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from stillroom.encoders.contract import Role
from stillroom.encoders.interface import Embedder
from stillroom.encoders.model_names import model_fingerprint
from stillroom.encoders.vectors.stored import (
    StoredVectors,
    VerifiedVectors,
)
from stillroom.errors import UserError
from stillroom.learning.batches import VectorRows
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.embed import encode_with_prompts
from stillroom.storage.artifacts import Artifact

TEACHER_FILE = "teacher.json"  # in a `vectors` artifact: the fingerprint of the teacher


@dataclass(frozen=True)
class OnlineVectors:
    """Vectors by row of texts, encoded on demand."""

    encoder: Embedder
    texts: Sequence[str]
    prompts: Sequence[str | None]
    role: Role
    skipped: tuple[int, ...] = ()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        texts = [self.texts[row] for row in rows]
        prompts = [self.prompts[row] for row in rows]
        return encode_with_prompts(self.encoder, texts, prompts, self.role)


class VectorSource(VectorRows, Protocol):
    """A teacher's vectors by row; `skipped` are rows without a vector."""

    @property
    def skipped(self) -> Sequence[int]: ...


# (corpus, device) → the vectors of its queries and of its passages. A teacher that encodes on
# demand does so on that device.
OpenVectors = Callable[[CorpusData, torch.device], tuple[VectorSource, VectorSource]]


@dataclass
class TeacherVectors:
    """A corpus and its teacher's vectors; a worker reads them once. Pickled to it."""

    corpus: Artifact
    open: OpenVectors
    _rows: tuple[VectorSource, VectorSource] | None = field(default=None, init=False, repr=False)

    @cached_property
    def corpus_data(self) -> CorpusData:
        return CorpusData.read(self.corpus)

    def rows(self, device: torch.device) -> tuple[VectorSource, VectorSource]:
        """Vectors of the queries and of the passages; opened once: a worker has one device."""
        if self._rows is None:
            self._rows = self.open(self.corpus_data, device)
        return self._rows


def online_vectors(corpus: CorpusData, teacher: Embedder) -> tuple[VectorSource, VectorSource]:
    """The teacher's vectors of a corpus's queries and passages, encoded on demand."""
    return (
        OnlineVectors(teacher, corpus.queries, corpus.prompts_of("query"), "query"),
        OnlineVectors(teacher, corpus.passages, corpus.prompts_of("passage"), "passage"),
    )


def stored_vectors(
    corpus: CorpusData, teacher: Artifact, vectors: Artifact
) -> tuple[VectorSource, VectorSource]:
    """The teacher's vectors of a corpus's queries and passages, from a `vectors` artifact.

    Raises:
        UserError: when they belong to another teacher, or to other texts or prompts.
    """
    fingerprint = json.loads((vectors.path / TEACHER_FILE).read_text())["fingerprint"]
    if fingerprint != model_fingerprint(str(teacher.path)):
        raise UserError(
            str(vectors.path),
            f"holds the vectors of another teacher than {teacher.path}",
            "Delete this artifact, and run again",
        )
    queries, passages = (StoredVectors(vectors.path / name) for name in ("queries", "passages"))
    return (
        VerifiedVectors(queries, corpus.queries, corpus.prompts_of("query")),
        VerifiedVectors(passages, corpus.passages, corpus.prompts_of("passage")),
    )
