"""TODO docstring: stages/vectors/teacher_vectors.py."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from stillroom.encoders.contract import Role
from stillroom.encoders.interface import Embedder
from stillroom.encoders.model_names import fingerprint
from stillroom.encoders.vectors.stored import (
    OfTexts,
    StoredVectors,
)
from stillroom.errors import UserError
from stillroom.learning.batches import Rows
from stillroom.stages.corpus.artifact import CorpusFiles
from stillroom.stages.vectors.embed import encode_prompted
from stillroom.storage.artifacts import Artifact

TEACHER = "teacher.json"  # whose vectors these are


@dataclass(frozen=True)
class Fresh:
    """Vectors that are made when they are asked for, by rows of texts."""

    encoder: Embedder
    texts: Sequence[str]
    prompts: Sequence[str | None]
    role: Role
    skipped: tuple[int, ...] = ()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        texts, prompts = ([of[row] for row in rows] for of in (self.texts, self.prompts))
        return encode_prompted(self.encoder, texts, prompts, self.role)


class Teaching(Rows, Protocol):
    """A teacher's vectors by row; `skipped` are rows that it has none of."""

    @property
    def skipped(self) -> Sequence[int]: ...


@dataclass
class Taught:
    """A corpus and its teacher's vectors. A worker reads them once, however many ask.

    Args:
        open: (files, device) → the vectors of the queries and of the passages, by row. A teacher
            that has yet to make them does so on that device.
    """

    corpus: Artifact
    open: Callable[[CorpusFiles, torch.device], tuple[Teaching, Teaching]]
    _rows: tuple[Teaching, Teaching] | None = field(default=None, init=False, repr=False)

    @cached_property
    def files(self) -> CorpusFiles:
        return CorpusFiles.read(self.corpus)

    def rows(self, device: torch.device) -> tuple[Teaching, Teaching]:
        """What `open` gives the first who asks; all of a worker's have one device."""
        if self._rows is None:
            self._rows = self.open(self.files, device)
        return self._rows


def fresh(files: CorpusFiles, teacher: Embedder) -> tuple[Teaching, Teaching]:
    """The teacher's vectors of a corpus's queries and passages, by row, made when asked for."""
    return (
        Fresh(teacher, files.queries, files.prompts_of("query"), "query"),
        Fresh(teacher, files.passages, files.prompts_of("passage"), "passage"),
    )


def stored(files: CorpusFiles, teacher: Artifact, vectors: Artifact) -> tuple[Teaching, Teaching]:
    """The same, from a `vectors` artifact.

    Raises:
        UserError: when that is another teacher's, or of other texts or prompts.
    """
    made_by = json.loads((vectors.path / TEACHER).read_text())["fingerprint"]
    if made_by != fingerprint(str(teacher.path)):
        raise UserError(
            str(vectors.path),
            f"was made by another teacher than {teacher.path}",
            "Delete that artifact, and run again",
        )
    queries, passages = (StoredVectors(vectors.path / name) for name in ("queries", "passages"))
    return (
        OfTexts(queries, files.queries, files.prompts_of("query")),
        OfTexts(passages, files.passages, files.prompts_of("passage")),
    )
