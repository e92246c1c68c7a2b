"""Vectors that an encoder has already made, for reuse in later steps.

Shapes: n texts, d dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Role
from stillroom.evaluation.encode_progress import EncodeTexts
from stillroom.evaluation.evaluate import EncodedSets

MAX_BYTES = 64 * 2**20  # of a set's queries or passages; larger ones are not kept


class KnownVectors:
    """Vectors of texts under one encoder's own prompts: (role, text) → float32, (d,)."""

    def __init__(self) -> None:
        self.vectors: dict[tuple[Role, str], np.ndarray] = {}

    def add(self, texts: Sequence[str], role: Role, vectors_nd: np.ndarray) -> None:
        for text, vector_d in zip(texts, vectors_nd, strict=True):
            self.vectors[role, text] = vector_d

    def missing(self, texts: Sequence[str], role: Role) -> list[str]:
        """The texts without a vector, each once."""
        return list(dict.fromkeys(text for text in texts if (role, text) not in self.vectors))

    def get(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """Vectors of texts that all have one: float32, (n, d)."""
        return np.stack([self.vectors[role, text] for text in texts])

    def completed_by(self, encode: EncodeTexts) -> EncodeTexts:
        """A function that encodes only texts without a vector, and keeps their vectors."""

        def known_or_encoded(texts: list[str], role: Role) -> np.ndarray:
            if missing := self.missing(texts, role):
                self.add(missing, role, encode(missing, role))
            return self.get(texts, role)

        return known_or_encoded

    @classmethod
    def read(cls, file: Path, sets: Mapping[str, EvaluationSet]) -> KnownVectors:
        """Reads the vectors of `write_vectors`; empty if there is no file."""
        known = cls()
        arrays = load_file(file) if file.exists() else {}
        for name, dataset in sets.items():
            for role, texts in _texts(dataset).items():
                if (vectors_nd := arrays.get(f"{name}/{role}")) is not None:
                    known.add(texts, role, vectors_nd)
        return known


def write_vectors(
    file: Path, encoded: EncodedSets, sets: Mapping[str, EvaluationSet], *, own_prompts: bool
) -> None:
    """Keeps the vectors of evaluation sets that were encoded under the encoder's own prompts.

    Args:
        own_prompts: whether all were, as a student's are; otherwise only those of sets without
            prompts are kept.
    """
    arrays = {
        f"{name}/{role}": np.ascontiguousarray(vectors[name], dtype=np.float32)
        for name, dataset in sets.items()
        for role, vectors in (("query", encoded.queries), ("passage", encoded.passages))
        if (own_prompts or dataset.prompts.get(role) is None)
        and len(vectors[name])
        and vectors[name].size * 4 <= MAX_BYTES
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, file)


def _texts(dataset: EvaluationSet) -> dict[Role, list[str]]:
    """The texts that `encode_sets` encodes, in its order."""
    return {"query": dataset.judged_queries(), "passage": list(dataset.passages.values())}
