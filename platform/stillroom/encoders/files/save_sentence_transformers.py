"""Writes the folder format of sentence-transformers beside a contract."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillroom.encoders.contract import Contract, ProjectionLayer
from stillroom.encoders.files.sentence_transformers import (
    ACTIVATION_NAMES,
    MODEL_CONFIG,
    MODULES_FILE,
    POOLING_FLAGS,
    TRANSFORMER_CONFIG,
)

MODULE_KINDS = {"dense": "Dense", "layer_norm": "LayerNorm"}


def supports_contract(contract: Contract) -> bool:
    """Whether the library has modules for everything in the contract."""
    return not (contract.echo or contract.latents)


def write_modules(
    folder: Path, contract: Contract, hidden: int, projection: dict[str, torch.Tensor]
) -> None:
    """Adds the library's files to the transformer's, so that it opens the same encoder.

    Args:
        hidden: dims of the transformer's states.
        projection: weights by their names in `Projection`.
    """
    kinds = ["Transformer", "Pooling", *(MODULE_KINDS[layer.kind] for layer in contract.projection)]
    kinds += ["Normalize"] if contract.normalise else []
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if kind == "Transformer" else f"{number}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    _write_json(folder / MODULES_FILE, modules)
    _write_json(
        folder / TRANSFORMER_CONFIG,
        {"max_seq_length": contract.max_tokens, "do_lower_case": False},
    )
    width = contract.projection[-1].dims if contract.projection else hidden
    roles = {"query": contract.prompts.query, "document": contract.prompts.passage}
    _write_json(
        folder / MODEL_CONFIG,
        {
            "prompts": {**contract.named_prompts, **roles},
            "default_prompt_name": None,
            "similarity_fn_name": contract.similarity,
            **({"truncate_dim": contract.dims[0]} if contract.dims[0] < width else {}),
        },
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "include_prompt": contract.pool_prompt,
            **{flag: pooling == contract.pooling for flag, pooling in POOLING_FLAGS.items()},
        },
    )
    for number, layer in enumerate(contract.projection):
        weights = {
            name.removeprefix(f"{number}."): tensor.float().contiguous()
            for name, tensor in projection.items()
            if name.startswith(f"{number}.")
        }
        path = folder / f"{number + 2}_{MODULE_KINDS[layer.kind]}"
        _write_layer(path, layer, weights)


def _write_layer(folder: Path, layer: ProjectionLayer, weights: dict[str, torch.Tensor]) -> None:
    if layer.kind == "layer_norm":
        _write_json(folder / "config.json", {"dimension": layer.dims})
    else:
        names = {activation: name for name, activation in ACTIVATION_NAMES.items()}
        package = "linear" if layer.activation == "identity" else "activation"
        _write_json(
            folder / "config.json",
            {
                "in_features": weights["weight"].shape[1],
                "out_features": layer.dims,
                "bias": layer.bias,
                "activation_function": f"torch.nn.modules.{package}.{names[layer.activation]}",
            },
        )
    prefix = "norm" if layer.kind == "layer_norm" else "linear"
    save_file(
        {f"{prefix}.{name}": tensor for name, tensor in weights.items()},
        folder / "model.safetensors",
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
