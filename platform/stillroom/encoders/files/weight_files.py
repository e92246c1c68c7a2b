"""Which files hold a transformer's weights, and whether they are whole, by their headers alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stillroom.encoders.model_names import ADAPTER_WEIGHTS
from stillroom.encoders.safe_read import (
    SAVE_AS_SAFETENSORS,
    path_inside,
    read_json_object,
    read_shapes,
)
from stillroom.errors import UserError

logger = logging.getLogger(__name__)

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONSOLIDATED_FILES = "consolidated*.safetensors"  # the same weights as Mistral's programs read
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")

# Weights in formats that are not read.
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
OTHER_FORMATS = (*PICKLED, ".msgpack", ".h5", ".gguf")


@dataclass(frozen=True)
class WeightFiles:
    """The Safetensors files that a transformer is loaded from.

    Attributes:
        shapes: of each file's tensors.
    """

    shapes: dict[Path, dict[str, tuple[int, ...]]]

    def find(self, weight: str) -> tuple[Path, str] | None:
        """The file and the name there of a transformer's weight; None where it is not clear.

        A file may hold the transformer inside a model with a head, whose name comes first.
        """
        places = self._by_ending.get(weight, [])
        return places[0] if len(places) == 1 else None

    def holds(self, weight: str) -> bool:
        """Whether there is a weight of that name, maybe after another beginning."""
        return weight in self._by_ending

    @cached_property
    def _by_ending(self) -> dict[str, list[tuple[Path, str]]]:
        """Each end of a weight's name → its places."""
        places: dict[str, list[tuple[Path, str]]] = {}
        for file, shapes in self.shapes.items():
            for name in shapes:
                parts = name.split(".")
                for start in range(len(parts)):
                    places.setdefault(".".join(parts[start:]), []).append((file, name))
        return places

    def where(self, weight: str, folder: Path) -> str:
        """A weight with its file, or only its folder, for an error."""
        place = self.find(weight)
        return f"{folder}: {weight}" if place is None else f"{place[0]}: {place[1]}"


def inspect_weights(folder: Path) -> WeightFiles:
    """The files that transformers reads the folder's weights from.

    Raises:
        UserError: naming a file that is missing, cut short, quantised or in another format, and
            for two sets of weights, of which one may be old.
    """
    files = _files(folder)
    if unread := sorted(folder.glob(CONSOLIDATED_FILES)):
        logger.info("%s: reads %s, not %s", folder, _listed(files), _listed(unread))
    shapes = {}
    for file in files:
        header = read_shapes(file)
        for name, (kind, _) in header.items():
            if name.endswith(".weight") and kind not in FLOAT_TYPES:
                raise UserError(
                    f"{file}: {name}",
                    f"is of the type {kind}: quantised weights are not read",
                    "Name the model that was not quantised",
                )
        shapes[file] = {name: shape for name, (_, shape) in header.items()}
    return WeightFiles(shapes)


def _files(folder: Path) -> list[Path]:
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if not single.is_file() and not index.is_file():
        raise _no_weights_error(folder)
    if not index.is_file():
        return [single]
    shards = _shards(index)
    present = [file for file in shards if file.is_file() and file != single]
    if single.is_file():
        # transformers reads the single file, and leaves an old index behind when it writes one.
        if present:
            raise UserError(
                str(folder),
                f"holds two sets of weights: {WEIGHTS_FILE}, and {_listed(present)} of "
                f"{INDEX_FILE}",
                "Delete the set that is not the model's, or move it away",
            )
        return [single]
    for shard in shards:
        if shard not in present:
            raise UserError(
                str(shard),
                f"does not exist, and {INDEX_FILE} names it",
                "Copy or download that file too",
            )
    return shards


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once, in order."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(str(index), "does not say which file holds which weight", "Restore it")
    return [path_inside(index.parent, name, index) for name in sorted(set(weight_map.values()))]


def _no_weights_error(folder: Path) -> UserError:
    unnamed = sorted(folder.glob("*.safetensors"))
    unnamed = [file for file in unnamed if file.name != ADAPTER_WEIGHTS]
    if unnamed:
        return UserError(
            str(folder),
            f"holds {_listed(unnamed)}, but neither {WEIGHTS_FILE} nor {INDEX_FILE}",
            "Restore the model's files, or rename the file",
        )
    others = sorted(file for file in folder.iterdir() if file.suffix in OTHER_FORMATS)
    if not others:
        return UserError(str(folder), "holds no weights", "Copy or download the model's weights")
    pickled = any(file.suffix in PICKLED for file in others)
    return UserError(
        str(folder),
        f"holds no weights in Safetensors, only {_listed(others)}",
        SAVE_AS_SAFETENSORS if pickled else "Convert them to Safetensors",
    )


def _listed(files: Sequence[Path]) -> str:
    """The names of some files, for an error."""
    more = len(files) - 3
    names = ", ".join(file.name for file in files[:3])
    return names if more <= 0 else f"{names} and {more} more"
