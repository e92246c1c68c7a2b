"""A few passages that a release carries to be looked at: texts, both encoders' vectors, maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

TEXTS, VECTORS = "texts.json", "vectors.safetensors"


@dataclass(frozen=True)
class Plane:
    """The plane in which vectors spread the most: their first two principal components.

    Attributes:
        mean: float32, (d,).
        axes: float32, (2, d), orthonormal; a row of zeros where there is no second direction.
    """

    mean: np.ndarray
    axes: np.ndarray

    @staticmethod
    def of(vectors_nd: np.ndarray) -> Plane:
        """Of at least one vector. The larger half of each axis points up, whatever the machine."""
        vectors = vectors_nd.astype(np.float32)
        mean = vectors.mean(axis=0)
        found = np.linalg.svd(vectors - mean, full_matrices=False)[2][:2]
        axes = np.zeros((2, vectors.shape[1]), dtype=np.float32)
        signs = np.sign(np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1))
        axes[: len(found)] = found * signs
        return Plane(mean, axes)

    def place(self, vectors_nd: np.ndarray) -> np.ndarray:
        """Where vectors fall, float32, (n, 2)."""
        return (vectors_nd.astype(np.float32) - self.mean) @ self.axes.T

    def turned(self, own_n2: np.ndarray, towards_n2: np.ndarray) -> Plane:
        """The same plane, turned or mirrored so that `own` come as near to `towards` as they can.

        The orthogonal Procrustes problem (Schönemann, 1966), for a principal component's
        direction means nothing, and two maps side by side should look the same where they are.
        """
        left, _, right = np.linalg.svd(towards_n2.T @ own_n2)
        return Plane(self.mean, (left @ right @ self.axes).astype(np.float32))


@dataclass(frozen=True)
class Example:
    """A query to try, and the rows of the passages that were judged to answer it."""

    query: str
    answers: list[int]


@dataclass(frozen=True)
class Shown:
    """What one encoder makes of the passages: float16 vectors, (n, d), and the plane they are
    drawn in."""

    vectors: np.ndarray
    plane: Plane


@dataclass(frozen=True)
class Showcase:
    """Passages of one corpus, as they are shown.

    Attributes:
        texts: of the passages; long ones are cut, though their vectors are of all.
        total: passages that the corpus has.
        examples: queries that were asked of it.
        clusters: each passage's, by the teacher's vectors, uint8, (n,).
        encoders: "teacher" and "student" → its vectors.
    """

    texts: Sequence[str]
    total: int
    examples: Sequence[Example]
    clusters: np.ndarray
    encoders: Mapping[str, Shown]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        told = {
            "total": self.total,
            "examples": [asdict(example) for example in self.examples],
            "texts": list(self.texts),
        }
        (folder / TEXTS).write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        arrays = {"clusters": self.clusters}
        for name, shown in self.encoders.items():
            arrays[f"{name}.vectors"] = shown.vectors
            arrays[f"{name}.mean"], arrays[f"{name}.axes"] = shown.plane.mean, shown.plane.axes
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        (folder / VECTORS).write_bytes(save(whole))

    @staticmethod
    def read(folder: Path) -> Showcase:
        told = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        arrays = load_file(folder / VECTORS)
        names = [key.removesuffix(".vectors") for key in arrays if key.endswith(".vectors")]
        return Showcase(
            told["texts"],
            told["total"],
            [Example(**example) for example in told["examples"]],
            arrays["clusters"],
            {
                name: Shown(
                    arrays[f"{name}.vectors"],
                    Plane(arrays[f"{name}.mean"], arrays[f"{name}.axes"]),
                )
                for name in sorted(names, reverse=True)  # the teacher first
            },
        )
