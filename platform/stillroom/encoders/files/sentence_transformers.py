"""The folder format of sentence-transformers: read instead of a contract, written with ours."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillroom.encoders.contract import Contract, Pooling, Prompts
from stillroom.encoders.safe_read import path_inside, read_tensors
from stillroom.errors import UserError

MODULES_FILE = "modules.json"

POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}

# Newer versions of the library name the mode instead of setting a flag for each.
POOLING_NAMES: dict[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
    "cls": "cls",
}


@dataclass(frozen=True)
class SentenceTransformersModel:
    """The description of a model in such a folder.

    Attributes:
        weights: the folder with the transformer.
        max_tokens: None if the folder does not define it.
        projection: the weight of a dense module, (out, in).
    """

    weights: Path
    pooling: Pooling
    pool_prompt: bool = True
    prompts: Prompts = field(default_factory=Prompts)
    max_tokens: int | None = None
    projection: torch.Tensor | None = None


def read_modules(folder: Path) -> SentenceTransformersModel:
    """Reads a folder with modules.json.

    Raises:
        UserError: for a module or a pooling that we do not support.
    """
    weights, projection = folder, None
    pooling_config: dict[str, Any] = {}
    for module in _read_json(folder / MODULES_FILE):
        package, _, kind = module["type"].rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise UserError(
                str(folder / MODULES_FILE),
                f"asks to run its own code: {module['type']}",
                "Use a model of that library's own modules: with trust_remote_code, too, only "
                "classes that config.json names for transformers are run",
            )
        path = path_inside(folder, module["path"], folder / MODULES_FILE)
        if kind == "Transformer":
            weights = path
        elif kind == "Pooling":
            pooling_config = _read_json(path / "config.json")
        elif kind == "Dense":
            projection = _dense(path)
        elif kind != "Normalize":  # all vectors are normalised
            raise UserError(
                str(folder / MODULES_FILE),
                f"holds a module that is not supported: {module['type']}",
                "Use a model of transformer, pooling, bias-free dense and normalisation",
            )
    prompts = _read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return SentenceTransformersModel(
        weights=weights,
        pooling=_pooling(folder, pooling_config),
        pool_prompt=bool(pooling_config.get("include_prompt", True)),
        prompts=Prompts(
            query=prompts.get("query", ""),
            passage=prompts.get("document", prompts.get("passage", "")),
        ),
        max_tokens=_read_json(weights / "sentence_bert_config.json").get("max_seq_length"),
        projection=projection,
    )


def _read_json(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is not JSON: {error}", "Restore the model's files") from error


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    poolings = [pooling for flag, pooling in POOLING_FLAGS.items() if config.get(flag)]
    if config.get("pooling_mode") in POOLING_NAMES:
        poolings = [POOLING_NAMES[config["pooling_mode"]]]
    if len(poolings) != 1:
        raise UserError(
            str(folder), "does not use one supported pooling", "Set pooling in the recipe"
        )
    return poolings[0]


def _dense(folder: Path) -> torch.Tensor:
    config = _read_json(folder / "config.json")
    linear = config.get("activation_function", "Identity").endswith("Identity")
    if config.get("bias", True) or not linear:
        raise UserError(
            str(folder),
            "is a dense module with a bias or an activation",
            "Use a model whose vectors are a linear map of the pooled states",
        )
    return read_tensors(folder / "model.safetensors")["linear.weight"]


def supports_contract(contract: Contract) -> bool:
    """Whether the library has modules for everything in the contract."""
    return not (contract.append_eos or contract.echo or contract.latents)


def write_modules(
    folder: Path, contract: Contract, hidden: int, projection: torch.Tensor | None
) -> None:
    """Adds the library's files to the transformer's, so that it opens the same encoder.

    Args:
        hidden: dims of the transformer's states.
        projection: (dims, hidden), float32.
    """
    kinds = ["Transformer", "Pooling"]
    kinds += ["Dense"] if projection is not None else []
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
        folder / "sentence_bert_config.json",
        {"max_seq_length": contract.max_tokens, "do_lower_case": False},
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": contract.prompts.query, "document": contract.prompts.passage},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
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
    if projection is not None:
        dense = folder / "2_Dense"
        _write_json(
            dense / "config.json",
            {
                "in_features": hidden,
                "out_features": len(projection),
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        save_file({"linear.weight": projection.contiguous()}, dense / "model.safetensors")


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
