"""Reads the folder format of sentence-transformers, in place of a contract."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stillroom.encoders.contract import (
    Activation,
    Comparison,
    Pooling,
    ProjectionLayer,
    Prompts,
    Similarity,
)
from stillroom.encoders.layers.projection import Projection
from stillroom.encoders.prompt_names import ROLE_NAMES
from stillroom.encoders.safe_read import path_inside, read_tensors
from stillroom.errors import UserError

MODULES_FILE = "modules.json"
TRANSFORMER_CONFIG = "sentence_bert_config.json"
MODEL_CONFIG = "config_sentence_transformers.json"

POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}

# Newer versions of the library name the mode instead of setting a flag for each.
POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}

# By the names that torch's modules have, without their packages.
ACTIVATION_NAMES: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}

SIMILARITIES: dict[str | None, Similarity] = {None: "cosine", "cosine": "cosine", "dot": "dot"}

# Of a transformer's module: what a model for texts has, and what asks for nothing when it is empty.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
KNOWN_OPTIONS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (TEXT_ONLY,),
    "module_output_name": ("token_embeddings",),
    "unpad_inputs": (None, True, False),
}


class UnsupportedModulesError(UserError):
    """Only the library itself can run these modules."""


@dataclass(frozen=True)
class SentenceTransformersModel:
    """The description of a model in such a folder.

    Attributes:
        weights: the folder with the transformer.
        prompts: of the roles; `named_prompts` has all that are not empty.
        max_tokens: None if the folder does not define it.
        lower_case: texts are lower-cased before they are tokenised.
        truncate_dim: the vectors' size, if they are cut.
        is_complete: False for a plain transformer that options describe.
        projection: the layers after pooling, with their weights, float32.
    """

    weights: Path
    pooling: Pooling
    pool_prompt: bool = True
    prompts: Prompts = field(default_factory=Prompts)
    named_prompts: dict[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    lower_case: bool = False
    projection: Projection | None = None
    normalise: bool = True
    similarity: Similarity = "cosine"
    truncate_dim: int | None = None
    is_complete: bool = True


def read_modules(folder: Path) -> SentenceTransformersModel:
    """Reads a folder with modules.json.

    Raises:
        UnsupportedModulesError: for modules or options that only the library can run.
        UserError: for broken files.
    """
    weights = folder
    pooling_config: dict[str, Any] | None = None
    layers: list[ProjectionLayer] = []
    tensors: list[dict[str, torch.Tensor]] = []
    width = 0  # dims of the vectors so far, as far as a module says it
    normalises = False
    for number, (kind, path) in enumerate(_modules(folder)):
        if kind != "Dropout" and normalises:
            raise _unsupported(folder, f"a {kind} module after Normalize")
        if kind == "Transformer" and number == 0:
            weights = path
        elif kind == "Pooling" and pooling_config is None and not layers:
            pooling_config = read_json(path / "config.json")
        elif kind == "Dense" and pooling_config is not None:
            layer, weight = _dense(path)
            width = width or weight["weight"].shape[1]
            layers.append(layer)
            tensors.append(weight)
        elif kind == "LayerNorm" and pooling_config is not None:
            size = read_json(path / "config.json").get("dimension")
            layers.append(ProjectionLayer(kind="layer_norm", dims=size))
            tensors.append(_without_prefix(read_tensors(path / "model.safetensors"), "norm."))
            width = width or size
        elif kind == "Normalize" and pooling_config is not None:
            normalises = True
        elif kind != "Dropout":  # of no effect but in training
            raise _unsupported(folder, f"a {kind} module")
    options = read_json(folder / MODEL_CONFIG)
    similarity = folder_similarity(folder, options)
    if similarity == "dot" and normalises and options.get("truncate_dim"):
        # Only there it matters that the library cuts vectors and leaves them shorter than 1.
        raise _unsupported(folder, "a cut of normalised vectors (truncate_dim) that dot compares")
    pooling_config = pooling_config or {}
    transformer = _transformer_options(weights)
    if _truncation_side(weights) == "left":
        raise _unsupported(folder, "a tokenizer that cuts off the beginning of long texts")
    pooling = _pooling(folder, pooling_config)
    pool_prompt = bool(pooling_config.get("include_prompt", True))
    if not pool_prompt and pooling in ("cls", "weighted_mean"):
        # The library's CLS is then the first token behind the prompt, and its weights count on.
        raise _unsupported(folder, f"the pooling {pooling} without the prompt (include_prompt)")
    return SentenceTransformersModel(
        weights=weights,
        pooling=pooling,
        pool_prompt=pool_prompt,
        prompts=role_prompts(options),
        named_prompts=named_prompts(options),
        max_tokens=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case")),
        projection=_projection(folder, width, layers, tensors),
        # For cosine it makes no difference, and an index may then take the inner product.
        normalise=normalises or similarity == "cosine",
        similarity=similarity,
        truncate_dim=options.get("truncate_dim"),
    )


def read_comparison(folder: Path) -> Comparison:
    """How the vectors of a folder with modules.json are compared; reads no weights."""
    similarity = folder_similarity(folder, read_json(folder / MODEL_CONFIG))
    modules = read_json(folder / MODULES_FILE)
    normalises = any(str(module.get("type")).endswith(".Normalize") for module in modules)
    return Comparison(similarity, normalises or similarity == "cosine")


def transformer_folder(folder: Path) -> Path:
    """The transformer inside a folder with modules.json; else the folder itself."""
    if not (folder / MODULES_FILE).exists():
        return folder
    return next((path for kind, path in _modules(folder) if kind == "Transformer"), folder)


def named_prompts(options: dict[str, Any]) -> dict[str, str]:
    """All prompts that are not empty, by the names in the model's configuration."""
    return {name: text for name, text in (options.get("prompts") or {}).items() if text}


def role_prompts(options: dict[str, Any]) -> Prompts:
    """The prompts of queries and passages; where a role has none, the default prompt.

    A default prompt that is another role's own is for that role alone.

    Raises:
        UserError: when the default prompt does not exist.
    """
    prompts = named_prompts(options)
    default = options.get("default_prompt_name") or ""
    if default not in {"", "query", "document", *(options.get("prompts") or {})}:
        raise UserError(
            f"{MODEL_CONFIG}: default_prompt_name",
            f"is {default!r}, which is not among the model's prompts",
            "Restore the model's files",
        )
    passage = next((prompts[name] for name in ROLE_NAMES["passage"] if name in prompts), "")
    for_passages = prompts.get(default, "") if default != "query" else ""
    for_queries = prompts.get(default, "") if default not in ROLE_NAMES["passage"] else ""
    return Prompts(query=prompts.get("query", for_queries), passage=passage or for_passages)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of each module.

    Raises:
        UnsupportedModulesError: for a class that is not the library's own.
    """
    listed = read_json(folder / MODULES_FILE)
    modules = []
    for number, module in enumerate(listed if isinstance(listed, list) else [{}]):
        try:
            package, _, kind = module["type"].rpartition(".")
            path = path_inside(folder, module["path"], folder / MODULES_FILE)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder / MODULES_FILE}: module {number}",
                "does not have a type and a path",
                "Restore the model's files",
            ) from error
        if package.partition(".")[0] != "sentence_transformers":
            raise UnsupportedModulesError(
                str(folder / MODULES_FILE),
                f"asks to run its own code: {module['type']}",
                "Read that code. If you trust it, set trust_remote_code: true, and "
                "sentence-transformers runs the model; it can then be a teacher, but not trained",
            )
        modules.append((kind, path))
    return modules


def _unsupported(folder: Path, problem: str) -> UnsupportedModulesError:
    return UnsupportedModulesError(
        str(folder),
        f"holds {problem}, which only sentence-transformers itself can run",
        "Use it as a teacher with encoder: sentence_transformers, or train another model",
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file; {} for a missing file.

    Raises:
        UserError: when it is broken.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is not JSON: {error}", "Restore the model's files") from error


def _transformer_options(folder: Path) -> dict[str, Any]:
    """The options of the transformer's module.

    Raises:
        UnsupportedModulesError: for an option that changes what the model reads or gives.
    """
    options: dict[str, Any] = read_json(folder / TRANSFORMER_CONFIG)
    for name, value in options.items():
        known = KNOWN_OPTIONS.get(name)
        if name in ("max_seq_length", "do_lower_case") or not value:
            continue
        if known is None or value not in known:
            raise _unsupported(folder, f"{TRANSFORMER_CONFIG} with {name}: {json.dumps(value)}")
    return options


def _truncation_side(folder: Path) -> str:
    """Where the tokenizer cuts long texts: left or right."""
    side = read_json(folder / "tokenizer_config.json").get("truncation_side")
    # transformers asks tokenizer.json only where the configuration is silent.
    truncation = {} if side else read_json(folder / "tokenizer.json").get("truncation")
    return str(side or (truncation or {}).get("direction", "right")).lower()


def folder_similarity(folder: Path, options: dict[str, Any]) -> Similarity:
    """How the model's authors compare vectors.

    Raises:
        UserError: when it is by a distance.
    """
    name = options.get("similarity_fn_name")
    if name not in SIMILARITIES:
        raise UserError(
            f"{folder / MODEL_CONFIG}: similarity_fn_name",
            f"is {name}, and vectors are searched by cosine or dot here",
            "Use a model of cosine or dot",
        )
    return SIMILARITIES[name]


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    poolings = [pooling for flag, pooling in POOLING_FLAGS.items() if config.get(flag)]
    modes = config.get("pooling_mode")
    if modes is not None:
        modes = [modes] if isinstance(modes, str) else modes
        if unknown := [mode for mode in modes if mode not in POOLING_NAMES]:
            raise _unsupported(folder, f"the pooling {unknown[0]}")
        poolings = [POOLING_NAMES[mode] for mode in modes]
    if not poolings:
        raise UserError(
            str(folder), f"has a {MODULES_FILE} without pooling", "Restore the model's files"
        )
    if len(poolings) > 1:
        raise _unsupported(folder, f"several poolings ({', '.join(poolings)})")
    return poolings[0]


def _dense(folder: Path) -> tuple[ProjectionLayer, dict[str, torch.Tensor]]:
    config = read_json(folder / "config.json")
    package, _, activation = config.get("activation_function", "torch.nn.Tanh").rpartition(".")
    names = [config.get(f"module_{end}_name") for end in ("input", "output")]
    if package.partition(".")[0] != "torch" or activation not in ACTIVATION_NAMES:
        raise _unsupported(folder, f"a Dense module with {package}.{activation}")
    if config.get("use_residual") or any(
        name not in (None, "sentence_embedding") for name in names
    ):
        raise _unsupported(folder, "a Dense module with a residual, or on other features")
    weights = _without_prefix(read_tensors(folder / "model.safetensors"), "linear.")
    layer = ProjectionLayer(
        dims=len(weights["weight"]),
        bias="bias" in weights,
        activation=ACTIVATION_NAMES[activation],
    )
    return layer, weights


def _without_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}


def _projection(
    folder: Path,
    in_dims: int,
    layers: list[ProjectionLayer],
    tensors: list[dict[str, torch.Tensor]],
) -> Projection | None:
    if not layers:
        return None
    projection = Projection(in_dims, layers)
    for number, (module, weights) in enumerate(zip(projection, tensors, strict=True)):
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{folder / MODULES_FILE}: layer {number} after pooling",
                f"does not fit to what comes before it: {str(error).splitlines()[-1].strip()}",
                "Restore the model's files",
            ) from error
    return projection
