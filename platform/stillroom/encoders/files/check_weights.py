"""Checks the weights of a transformer or of an adapter before a run, without loading the model."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from stillroom.encoders.files.pretrained import (
    CONFIG_FILE,
    NUMBER,
    load_config,
    missing_error,
    require_counted_layers,
    shape_error,
)
from stillroom.encoders.files.sentence_transformers import transformer_folder
from stillroom.encoders.files.weight_files import WeightFiles, inspect_weights
from stillroom.encoders.layers.backbone import backbone_class, without_pooler
from stillroom.encoders.model_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, locate_model
from stillroom.encoders.remote_code import needs_remote_code
from stillroom.encoders.safe_read import is_finite, read_json_object, read_shapes
from stillroom.encoders.usable_vectors import broken_weight_error
from stillroom.errors import UserError, one_line


def check_weights(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Checks that a transformer's weights are whole, finite, and of the sizes that its config says.

    Raises:
        UserError: as `load_backbone`.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    files = inspect_weights(folder)
    if not needs_remote_code(folder):  # else its code would have to be run
        backbone = without_pooler(_without_weights(config, folder))
        _check_finite(_check_names_and_shapes(files, backbone, folder))


def check_lora(folder: Path, base: str) -> None:
    """Checks that an adapter is LoRA, whole, and of its base's sizes.

    Args:
        base: its name.

    Raises:
        UserError: naming the file or the layer that is wrong.
    """
    kind = read_json_object(folder / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise UserError(
            str(folder), f"is a {kind} adapter", "Use a LoRA adapter, or merge it first"
        )
    tensors = read_shapes(folder / ADAPTER_WEIGHTS)
    base_folder = transformer_folder(locate_model(base))
    if not (base_folder / CONFIG_FILE).is_file():
        return  # the base is an adapter too
    files = inspect_weights(base_folder)
    for name, (_, (_, in_dims)) in tensors.items():
        layer, lora, _ = name.partition(".lora_A.")
        if not lora:
            continue
        _, (out_dims, _) = tensors[f"{layer}.lora_B.weight"]
        place = files.find(f"{layer.removeprefix('base_model.model.')}.weight")
        if place is None:
            continue
        shape = files.shapes[place[0]][place[1]]
        # Some architectures store a layer's weight transposed.
        if sorted(shape) != sorted((out_dims, in_dims)):
            raise UserError(
                str(folder),
                f"does not fit {base}: {place[1]} is of the shape {shape}, and the adapter's "
                f"{(out_dims, in_dims)}",
                f"Correct base_model_name_or_path in {ADAPTER_CONFIG}",
            )


def _without_weights(config: Any, folder: Path) -> Any:
    """The transformer of a config, of tensors without content."""
    try:
        with torch.device("meta"):
            return backbone_class(config).from_config(config)
    except UserError:
        raise
    except Exception as error:  # of sizes that do not fit together, for example
        raise UserError(
            str(folder / CONFIG_FILE),
            f"describes a model that cannot be built: {one_line(error, 300)}",
            "Restore the model's files",
        ) from error


def _check_names_and_shapes(
    files: WeightFiles, backbone: torch.nn.Module, folder: Path
) -> list[tuple[Path, str]]:
    """The places of the transformer's weights.

    A few architectures are stored under other names. So one that is not found is missing only where
    other layers have it.
    """
    places: dict[str, tuple[Path, str]] = {}
    for name, weight in backbone.named_parameters():
        if (place := files.find(name)) is None:
            continue
        file, stored_name = places[name] = place
        if files.shapes[file][stored_name] != tuple(weight.shape):
            where = f"{file}: {stored_name}"
            raise shape_error(where, files.shapes[file][stored_name], weight.shape)
    require_counted_layers(files, backbone, folder)
    kinds = {NUMBER.sub("#", name) for name in places}
    names = [name for name, _ in backbone.named_parameters() if NUMBER.sub("#", name) in kinds]
    if missing := sorted(name for name in names if not files.holds(name)):
        raise missing_error(missing, folder)
    if not places:
        raise UserError(
            str(folder),
            f"holds none of the weights of {type(backbone).__name__}",
            "Restore the model's files: these belong to different models",
        )
    return list(places.values())


def _check_finite(places: list[tuple[Path, str]]) -> None:
    """Reads the weights one by one: after the headers, what makes all vectors useless."""
    for file in sorted({file for file, _ in places}):
        with safe_open(file, "pt") as tensors:
            for name in (name for its_file, name in places if its_file == file):
                if not is_finite(tensors.get_tensor(name)):
                    raise broken_weight_error(f"{file}: {name}")
