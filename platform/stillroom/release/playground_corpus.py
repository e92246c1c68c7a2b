"""Passages that a release contains for the playground: texts, both encoders' vectors, and maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

TEXTS_FILE, VECTORS_FILE = "texts.json", "vectors.safetensors"


@dataclass(frozen=True)
class PcaPlane:
    """The plane of the vectors' largest variance: their first two principal components.

    Attributes:
        mean: float32, (d,).
        axes: float32, (2, d), orthonormal; a row of zeros where there is no second direction.
    """

    mean: np.ndarray
    axes: np.ndarray

    @staticmethod
    def fit(vectors_nd: np.ndarray) -> PcaPlane:
        """The plane of n ≥ 1 vectors.

        The largest number of each axis is positive, so that every machine gives the same signs.
        """
        vectors_nd = vectors_nd.astype(np.float32)
        mean_d = vectors_nd.mean(axis=0)
        components = np.linalg.svd(vectors_nd - mean_d, full_matrices=False)[2][:2]
        largest = np.abs(components).argmax(axis=1)[:, None]
        axes = np.zeros((2, vectors_nd.shape[1]), dtype=np.float32)
        axes[: len(components)] = components * np.sign(
            np.take_along_axis(components, largest, axis=1)
        )
        return PcaPlane(mean_d, axes)

    def project(self, vectors_nd: np.ndarray) -> np.ndarray:
        """The points of vectors in the plane, float32, (n, 2)."""
        return (vectors_nd.astype(np.float32) - self.mean) @ self.axes.T

    def aligned_to(self, points_n2: np.ndarray, target_n2: np.ndarray) -> PcaPlane:
        """The same plane, rotated or mirrored so that its points come closest to the target's.

        Solves the orthogonal Procrustes problem (Schönemann, 1966). The direction of a principal
        component is arbitrary, and similar maps side by side should look alike.

        Args:
            points_n2: points in this plane.
            target_n2: the same passages' points in the other plane.
        """
        left, _, right = np.linalg.svd(target_n2.T @ points_n2)
        return PcaPlane(self.mean, (left @ right @ self.axes).astype(np.float32))


@dataclass(frozen=True)
class ExampleQuery:
    """A query to try, and the rows of the passages that were judged to answer it."""

    query: str
    answers: list[int]


@dataclass(frozen=True)
class EncoderView:
    """The passages as one encoder sees them.

    Attributes:
        vectors: float16, (n, d).
        plane: for the map of the passages.
    """

    vectors: np.ndarray
    plane: PcaPlane


@dataclass(frozen=True)
class PlaygroundCorpus:
    """Passages of one corpus, for search and for a map.

    Attributes:
        texts: of the passages; long ones are cut, but their vectors are of the whole text.
        total: passages in the whole corpus.
        examples: queries to try.
        clusters: of each passage, by the teacher's vectors, uint8, (n,).
        encoders: "teacher" and "student" → its view.
    """

    texts: Sequence[str]
    total: int
    examples: Sequence[ExampleQuery]
    clusters: np.ndarray
    encoders: Mapping[str, EncoderView]

    def write(self, folder: Path) -> None:
        """Write two files into a new folder."""
        folder.mkdir(parents=True)
        content = {
            "total": self.total,
            "examples": [asdict(example) for example in self.examples],
            "texts": list(self.texts),
        }
        (folder / TEXTS_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        arrays = {"clusters": self.clusters}
        for name, view in self.encoders.items():
            arrays[f"{name}.vectors"] = view.vectors
            arrays[f"{name}.mean"], arrays[f"{name}.axes"] = view.plane.mean, view.plane.axes
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        (folder / VECTORS_FILE).write_bytes(save(contiguous))

    @staticmethod
    def read(folder: Path) -> PlaygroundCorpus:
        """Read the files of `write`."""
        content = json.loads((folder / TEXTS_FILE).read_text(encoding="utf-8"))
        arrays = load_file(folder / VECTORS_FILE)
        names = [key.removesuffix(".vectors") for key in arrays if key.endswith(".vectors")]
        return PlaygroundCorpus(
            content["texts"],
            content["total"],
            [ExampleQuery(**example) for example in content["examples"]],
            arrays["clusters"],
            {
                name: EncoderView(
                    arrays[f"{name}.vectors"],
                    PcaPlane(arrays[f"{name}.mean"], arrays[f"{name}.axes"]),
                )
                for name in sorted(names, reverse=True)  # the teacher first
            },
        )
