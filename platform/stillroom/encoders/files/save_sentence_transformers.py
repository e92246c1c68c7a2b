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
from stillroom.encoders.prompt_names import ROLE_NAMES

MODULE_KINDS = {"dense": "Dense", "layer_norm": "LayerNorm"}


def inexpressible(contract: Contract, tokenizer: Any, hidden: int) -> str | None:
    """What the library has no module for, or runs in another way; None: it gives the same vectors.

    Args:
        hidden: dims of the transformer's states.
    """
    if contract.echo:
        return "echo, which gives a text twice"
    if contract.latents is not None:
        return "latent attention"
    cut = contract.dims[0] < _width(contract, hidden)
    if cut and contract.normalise and contract.similarity == "dot":
        return "vectors that are cut, then normalised and compared by dot: it normalises first"
    if contract.pool_prompt or contract.pooling == "cls":
        return None
    prompts = [contract.prompts.query, contract.prompts.passage, *contract.named_prompts.values()]
    for prompt in filter(None, prompts):
        if contract.pooling == "weighted_mean":
            return "weighted_mean without the prompt: it counts the prompt's tokens in the weights"
        if _prompt_length(tokenizer, prompt) != _common_length(tokenizer, prompt):
            return (
                f"pool_prompt: false with the prompt {prompt!r}, whose end the tokenizer joins to "
                "the text: it leaves the text's first token out, too"
            )
    return None


def _prompt_length(tokenizer: Any, prompt: str) -> int:
    """How many of a text's tokens the library does not pool: those of the prompt alone, without a
    special token at their end."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _common_length(tokenizer: Any, prompt: str) -> int:
    """How many of a text's first tokens do not depend on what follows the prompt."""
    texts = [tokenizer(prompt + letter)["input_ids"] for letter in ("a", "Z")]
    ends = (at for at, ids in enumerate(zip(*texts, strict=False)) if len(set(ids)) > 1)
    return next(ends, min(map(len, texts)))


def _width(contract: Contract, hidden: int) -> int:
    """Dims of a vector before it is cut."""
    return contract.projection[-1].dims if contract.projection else hidden


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
    cut = contract.dims[0] < _width(contract, hidden)
    _write_json(
        folder / MODEL_CONFIG,
        {
            "prompts": _prompts(contract),
            "default_prompt_name": _default_prompt(contract),
            "similarity_fn_name": contract.similarity,
            **({"truncate_dim": contract.dims[0]} if cut else {}),
        },
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            # CLS is before the prompt, and pooled in any case.
            "include_prompt": contract.pool_prompt or contract.pooling == "cls",
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


def _prompts(contract: Contract) -> dict[str, str]:
    """All prompts by name. Of the names that the library takes for a passage's, one that says
    something else is left out."""
    query, passage = contract.prompts.query, contract.prompts.passage
    named = {
        name: prompt
        for name, prompt in contract.named_prompts.items()
        if name not in ROLE_NAMES["passage"] or prompt == passage
    }
    return {**named, "query": query, "document": passage}


def _default_prompt(contract: Contract) -> str | None:
    """The name of the prompt that both roles have, for texts without a role."""
    return next(
        (
            name
            for name, prompt in contract.named_prompts.items()
            if prompt == contract.prompts.query == contract.prompts.passage
        ),
        None,
    )


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
