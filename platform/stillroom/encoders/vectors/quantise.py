"""Vectors in fewer bytes: int8 over each dimension's range, or the sign of each dimension."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors.numpy import load_file, save_file

from stillroom.errors import UserError

# What a vector is stored as; of `binary+rescoring` both its bits and its int8 codes are.
Precision = Literal["float32", "float16", "int8", "binary", "binary+rescoring"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

RESCORED = 4  # so many × k are found by their bits, and ordered anew

FILE = "calibration.safetensors"


def searched_bytes(precision: Precision, dims: int) -> int:
    """Of a vector, what a search goes through, and so holds in memory."""
    return {"float32": 4 * dims, "float16": 2 * dims, "int8": dims}.get(precision, -(-dims // 8))


@dataclass(frozen=True)
class Calibration:
    """How wide each dimension's values spread: int8 codes stand for 256 even steps of that.

    The steps lie between the least and the largest value seen, not between quantiles: those cut
    off what is far out, and vectors then lose more than the finer steps win them.

    Attributes:
        low: float32, (d,).
        step: float32, (d,), above 0.
    """

    low: np.ndarray
    step: np.ndarray

    @staticmethod
    def of(vectors_nd: np.ndarray) -> "Calibration":
        """Of passages such as will be stored, at least one; of unit length where those are."""
        low, high = vectors_nd.min(axis=0), vectors_nd.max(axis=0)
        step = np.maximum((high - low) / 255, 1e-12)  # of what never moves, too
        return Calibration(low.astype(np.float32), step.astype(np.float32))

    def encode(self, vectors_nd: np.ndarray) -> np.ndarray:
        """int8, (n, d); what is outside the range becomes its end."""
        steps = np.rint((vectors_nd - self.low) / self.step)
        return (np.clip(steps, 0, 255) - 128).astype(np.int8)

    def decode(self, codes_nd: np.ndarray) -> np.ndarray:
        """What codes stand for, float32, (..., d)."""
        return self.low + (codes_nd.astype(np.float32) + 128) * self.step


def signs(vectors_nd: np.ndarray) -> np.ndarray:
    """A bit for each dimension above 0, eight a byte: uint8, (n, ceil(d / 8))."""
    return np.packbits(vectors_nd > 0, axis=1)


def from_signs(bits_nb: np.ndarray, dims: int) -> np.ndarray:
    """1 or -1 a dimension, float32, (n, dims).

    The inner product of two such vectors is dims - 2 × their bits' Hamming distance.
    """
    return 2 * np.unpackbits(bits_nb, axis=1, count=dims).astype(np.float32) - 1


def write_calibrations(folder: Path, by_dims: Mapping[int, Calibration]) -> None:
    """One file for all sizes that vectors may be cut to."""
    tensors: dict[str, np.ndarray] = {}
    for dims, of in by_dims.items():
        tensors |= {f"low.{dims}": of.low, f"step.{dims}": of.step}
    save_file(tensors, folder / FILE)


def read_calibrations(folder: Path) -> dict[int, Calibration]:
    """By the vectors' size.

    Raises:
        UserError: when the folder holds none.
    """
    if not (folder / FILE).is_file():
        raise UserError(
            str(folder / FILE), "does not exist", "Name the folder of a release's student"
        )
    tensors = load_file(folder / FILE)
    sizes = [int(name.removeprefix("low.")) for name in tensors if name.startswith("low.")]
    return {dims: Calibration(tensors[f"low.{dims}"], tensors[f"step.{dims}"]) for dims in sizes}
