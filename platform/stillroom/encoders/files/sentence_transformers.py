"""The sentence-transformers library's folder format: read as a contract, written beside ours."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillroom.encoders.contract import Contract, Pooling, Prompts
from stillroom.encoders.safe_read import inside, tensors
from stillroom.errors import UserError

MODULES = "modules.json"

POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}

# Newer versions name the one mode instead of setting a flag for each.
POOLING_NAMES: dict[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
    "cls": "cls",
}


@dataclass(frozen=True)
class Foreign:
    """What such a folder says; `weights` is where its transformer lies."""

    weights: Path
    pooling: Pooling
    pool_prompt: bool
    normalise: bool
    prompts: Prompts
    max_tokens: int | None
    projection: torch.Tensor | None  # (out, in)


def read(folder: Path) -> Foreign:
    """A folder with modules.json.

    Raises:
        UserError: at a module or a pooling that we have no equal for.
    """
    weights, projection, normalise = folder, None, False
    pooling_config: dict[str, Any] = {}
    for module in _json(folder / MODULES):
        own, _, kind = module["type"].rpartition(".")
        if own.partition(".")[0] != "sentence_transformers":
            raise UserError(
                str(folder / MODULES),
                f"asks to run code of its own: {module['type']}",
                "Use a model of that library's own modules: with trust_remote_code, too, only "
                "classes that config.json names for transformers are run",
            )
        lies = inside(folder, module["path"], folder / MODULES)
        if kind == "Transformer":
            weights = lies
        elif kind == "Pooling":
            pooling_config = _json(lies / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind == "Dense":
            projection = _dense(lies)
        else:
            raise UserError(
                str(folder / MODULES),
                f"holds a module that we cannot follow: {module['type']}",
                "Use a model of transformer, pooling, bias-free dense and normalisation",
            )
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return Foreign(
        weights=weights,
        pooling=_pooling(folder, pooling_config),
        pool_prompt=bool(pooling_config.get("include_prompt", True)),
        normalise=normalise,
        prompts=Prompts(
            query=prompts.get("query", ""),
            passage=prompts.get("document", prompts.get("passage", "")),
        ),
        max_tokens=_json(weights / "sentence_bert_config.json").get("max_seq_length"),
        projection=projection,
    )


def _json(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise UserError(str(path), f"is no JSON: {fault}", "Restore the model's files") from fault


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    found = [ours for flag, ours in POOLING_FLAGS.items() if config.get(flag)]
    if config.get("pooling_mode") in POOLING_NAMES:
        found = [POOLING_NAMES[config["pooling_mode"]]]
    if len(found) != 1:
        raise UserError(
            str(folder), "does not pool in one way that we know", "Set pooling in the recipe"
        )
    return found[0]


def _dense(folder: Path) -> torch.Tensor:
    config = _json(folder / "config.json")
    linear = config.get("activation_function", "Identity").endswith("Identity")
    if config.get("bias", True) or not linear:
        raise UserError(
            str(folder),
            "is a dense module with a bias or an activation",
            "Use a model whose vectors are a linear map of the pooled states",
        )
    return tensors(folder / "model.safetensors")["linear.weight"]


def can_express(contract: Contract) -> bool:
    """Whether the library has modules for all that the contract says."""
    return not (contract.append_eos or contract.echo or contract.latents)


def write(folder: Path, contract: Contract, hidden: int, projection: torch.Tensor | None) -> None:
    """The same encoder for that library, beside the transformer's own files in `folder`.

    Args:
        hidden: size of the transformer's states.
        projection: (dims, hidden), float32.
    """
    kinds = ["Transformer", "Pooling"]
    kinds += ["Dense"] if projection is not None else []
    kinds += ["Normalize"] if contract.normalise else []
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "" if kind == "Transformer" else f"{place}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    _write(folder / MODULES, modules)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": contract.max_tokens, "do_lower_case": False},
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": contract.prompts.query, "document": contract.prompts.passage},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            "include_prompt": contract.pool_prompt,
            **{flag: ours == contract.pooling for flag, ours in POOLING_FLAGS.items()},
        },
    )
    if projection is not None:
        dense = folder / "2_Dense"
        _write(
            dense / "config.json",
            {
                "in_features": hidden,
                "out_features": len(projection),
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        save_file({"linear.weight": projection.contiguous()}, dense / "model.safetensors")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
