"""A teacher's vectors of a corpus by row: from a `vectors` artifact, or encoded on demand."""

import functools
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
from stillroom.stages.vectors.encode import encode_with_prompts
from stillroom.storage.artifacts import Artifact
from stillroom.storage.columns import Joined, Lookup

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


@dataclass(frozen=True)
class JoinedVectors:
    """The rows of two sources of vectors, one after the other."""

    first: "VectorSource"
    rows: int  # of the first
    second: "VectorSource"

    @property
    def skipped(self) -> list[int]:
        """Rows without a vector."""
        return [*self.first.skipped, *(self.rows + row for row in self.second.skipped)]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        in_first = rows < self.rows
        if in_first.all():
            return self.first[rows]
        if not in_first.any():
            return self.second[rows - self.rows]
        parts = self.first[rows[in_first]], self.second[rows[~in_first] - self.rows]
        vectors = np.empty((len(rows), parts[0].shape[1]), dtype=parts[0].dtype)
        vectors[in_first], vectors[~in_first] = parts
        return vectors


class VectorSource(VectorRows, Protocol):
    """A teacher's vectors by row; `skipped` are rows without a vector."""

    @property
    def skipped(self) -> Sequence[int]: ...


# (corpus, device) → the vectors of its queries and of its passages, each followed by those of the
# general texts that are encoded in that role. A teacher that encodes on
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
        return CorpusData.open(self.corpus)

    def rows(self, device: torch.device) -> tuple[VectorSource, VectorSource]:
        """Vectors of the queries and of the passages; opened once: a worker has one device."""
        if self._rows is None:
            self._rows = self.open(self.corpus_data, device)
        return self._rows


def online_vectors(
    corpus: CorpusData, encoder: Embedder, *, own_prompts: bool = False
) -> tuple[VectorSource, VectorSource]:
    """An encoder's vectors of a corpus's queries and passages, encoded on demand.

    Args:
        own_prompts: all texts get the encoder's own prompts, not those of their sources, which are
            the teacher's.
    """
    no_prompts = functools.partial(Lookup[str | None].repeated, None)

    def of_role(role: Role) -> OnlineVectors:
        texts = corpus.all_texts(role)
        prompts: Sequence[str | None] = no_prompts(len(texts))
        if not own_prompts:
            general = no_prompts(len(corpus.general_texts(role)))
            prompts = Joined(corpus.prompts_of(role), general)
        return OnlineVectors(encoder, texts, prompts, role)

    return of_role("query"), of_role("passage")


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

    def of_role(folder: str, role: Role, texts: Sequence[str]) -> VectorSource:
        stored = StoredVectors(vectors.path / folder)
        verified = VerifiedVectors(stored, texts, corpus.prompts_of(role))
        if not (general := corpus.general_texts(role)):
            return verified
        more = StoredVectors(vectors.path / f"general-{folder}")
        return JoinedVectors(
            verified,
            len(texts),
            VerifiedVectors(more, general, Lookup.repeated(None, len(general))),
        )

    return (
        of_role("queries", "query", corpus.queries),
        of_role("passages", "passage", corpus.passages),
    )
