"""Vectors in fewer bytes: int8 over each dimension's range, or one bit for each sign.

Shapes: n vectors, d dims, b bytes of packed bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors.numpy import load_file, save_file

from stillroom.errors import UserError

# What a vector is stored as; `binary+rescoring` stores both its bits and its int8 codes.
VectorPrecision = Literal["float32", "float16", "int8", "binary", "binary+rescoring"]

VECTOR_PRECISIONS: tuple[VectorPrecision, ...] = get_args(VectorPrecision)
RESCORE_FACTOR = 4  # a search by bits takes 4 × k candidates, which int8 codes order again
CALIBRATION_FILE = "calibration.safetensors"


def search_bytes(precision: VectorPrecision, dims: int) -> int:
    """Bytes of a vector that a search reads, and so holds in memory."""
    return {"float32": 4 * dims, "float16": 2 * dims, "int8": dims}.get(precision, -(-dims // 8))


@dataclass(frozen=True)
class Calibration:
    """The range of each dimension, which int8 codes divide into 256 even steps.

    The range is from the smallest to the largest value seen. Quantiles would give finer steps, but
    cut off outliers, and vectors lose more by that.

    Attributes:
        low: smallest values, float32 (d,).
        step: float32 (d,), above 0.
    """

    low: np.ndarray
    step: np.ndarray

    @staticmethod
    def fit(vectors_nd: np.ndarray) -> "Calibration":
        """The ranges of these vectors: at least one, of passages like those to be stored."""
        low, high = vectors_nd.min(axis=0), vectors_nd.max(axis=0)
        step = np.maximum((high - low) / 255, 1e-12)  # above 0 for constant dimensions too
        return Calibration(low.astype(np.float32), step.astype(np.float32))

    def encode(self, vectors_nd: np.ndarray) -> np.ndarray:
        """int8 codes, (n, d); values outside the range are clipped."""
        steps = np.rint((vectors_nd - self.low) / self.step)
        return (np.clip(steps, 0, 255) - 128).astype(np.int8)

    def decode(self, codes_nd: np.ndarray) -> np.ndarray:
        """The values of codes, float32 (..., d)."""
        return self.low + (codes_nd.astype(np.float32) + 128) * self.step


def pack_signs(vectors_nd: np.ndarray) -> np.ndarray:
    """A bit per dimension, 1 above 0, eight per byte: uint8 (n, ceil(d / 8))."""
    return np.packbits(vectors_nd > 0, axis=1)


def unpack_signs(bits_nb: np.ndarray, dims: int) -> np.ndarray:
    """1 or -1 per dimension, float32 (n, dims).

    The inner product of two such vectors is dims - 2 × the Hamming distance of their bits.
    """
    return 2 * np.unpackbits(bits_nb, axis=1, count=dims).astype(np.float32) - 1


def write_calibrations(folder: Path, calibrations: Mapping[int, Calibration]) -> None:
    """Writes the calibrations of all sizes that vectors may be cut to into one file."""
    tensors: dict[str, np.ndarray] = {}
    for dims, calibration in calibrations.items():
        tensors |= {f"low.{dims}": calibration.low, f"step.{dims}": calibration.step}
    save_file(tensors, folder / CALIBRATION_FILE)


def read_calibrations(folder: Path) -> dict[int, Calibration]:
    """Dims → calibration.

    Raises:
        UserError: when the folder has no calibrations.
    """
    if not (folder / CALIBRATION_FILE).is_file():
        raise UserError(
            str(folder / CALIBRATION_FILE),
            "does not exist",
            "Name the folder of a release's student",
        )
    tensors = load_file(folder / CALIBRATION_FILE)
    sizes = [int(name.removeprefix("low.")) for name in tensors if name.startswith("low.")]
    return {dims: Calibration(tensors[f"low.{dims}"], tensors[f"step.{dims}"]) for dims in sizes}
