"""A copy of a model's folder with a tiny transformer of random weights, to try its files on.

Everything that is not a size stays: architecture, attention windows, tokenizer, modules, prompts.
A copy of a 7B model is a few MiB, so what it shows takes seconds.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stillroom.encoders.files.pretrained import load_config
from stillroom.encoders.files.save_transformer import save_transformer
from stillroom.encoders.files.sentence_transformers import MODEL_CONFIG, MODULES_FILE, read_json
from stillroom.encoders.layers.backbone import backbone_class
from stillroom.encoders.safe_read import path_inside

LAYERS, HEADS, HEAD_DIMS = 2, 2, 16
WINDOW = 8  # tokens, so that probe texts are longer

# Names of sizes in configs, besides those that transformers maps to one name.
INTERMEDIATE_SIZES = ("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner")
WINDOWS = ("sliding_window", "local_attention")

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".onnx", ".gguf", ".h5")


def small_copy(folder: Path, copy: Path, *, trust_remote_code: bool = False) -> Path:
    """Writes the copy of a plain folder, or of one that `read_modules` can read.

    Raises:
        UserError: when the config is missing or broken.
        ValueError, RuntimeError, …: when the architecture does not exist in a small size.
    """
    modules = read_json(folder / MODULES_FILE) or []
    places = [path_inside(folder, module["path"], folder / MODULES_FILE) for module in modules]
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())
    transformer = places[0] if places else folder
    width = _write_transformer(
        transformer, copy / transformer.relative_to(folder), trust_remote_code
    )
    dims = width
    for module, place in zip(modules[1:], places[1:], strict=True):
        kind = module["type"].rpartition(".")[2]
        dims = _write_module(kind, place, copy / place.relative_to(folder), dims)
    options = read_json(folder / MODEL_CONFIG)
    if options.get("truncate_dim"):
        _write_json(copy / MODEL_CONFIG, {**options, "truncate_dim": max(1, dims // 2)})
    return copy


def shrink_config(config: Any) -> None:
    """Sets the sizes of a transformer's config; the vocabulary and the positions keep theirs."""
    heads_of_keys = getattr(config, "num_key_value_heads", None)
    grouped = heads_of_keys is not None and heads_of_keys < config.num_attention_heads
    layer_types = getattr(config, "layer_types", None)
    sizes = {
        "hidden_size": HEADS * HEAD_DIMS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1 if grouped else HEADS,
        "head_dim": HEAD_DIMS,
        "d_kv": HEAD_DIMS,
        "embedding_size": HEAD_DIMS,
        "pooler_hidden_size": HEADS * HEAD_DIMS,
        **dict.fromkeys(INTERMEDIATE_SIZES, 2 * HEADS * HEAD_DIMS),
        **dict.fromkeys(WINDOWS, WINDOW),
    }
    for name, size in sizes.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    if layer_types:
        kinds = list(dict.fromkeys(layer_types))  # one of each
        config.layer_types = (kinds * LAYERS)[: max(LAYERS, len(kinds))]
        config.num_hidden_layers = len(config.layer_types)


def _write_transformer(source: Path, target: Path, trust_remote_code: bool) -> int:
    """Returns the dims of its states."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    shrink_config(config)
    with torch.random.fork_rng():  # a caller's random numbers do not depend on this
        model = backbone_class(config).from_config(config, trust_remote_code=trust_remote_code)
    _draw_weights(model)
    with torch.inference_mode():  # fails here where sizes depend on each other
        model.eval()(input_ids=torch.arange(8)[None] % config.vocab_size)
    (target / "config.json").unlink()
    save_transformer(model.float(), target)
    return int(model.config.hidden_size)


def _write_module(kind: str, source: Path, target: Path, dims: int) -> int:
    """A module behind the transformer, for inputs of that many dims; returns its output's."""
    config = read_json(source / "config.json")
    if kind == "Pooling":
        renamed = {name: dims for name in config if name.endswith("embedding_dimension")}
        _write_json(target / "config.json", {**config, **renamed})
    if kind == "Dense":
        grows = config["out_features"] / config["in_features"]
        outputs = max(2, round(dims * min(2.0, grows)))
        _write_json(
            target / "config.json", {**config, "in_features": dims, "out_features": outputs}
        )
        weights = {"linear.weight": _noise(outputs, dims) / dims**0.5}
        if "linear.bias" in _tensor_names(source / "model.safetensors"):
            weights["linear.bias"] = _noise(outputs) / 10
        save_file(weights, target / "model.safetensors")
        return outputs
    if kind == "LayerNorm":
        _write_json(target / "config.json", {**config, "dimension": dims})
        weights = {"norm.weight": 1 + _noise(dims) / 10, "norm.bias": _noise(dims) / 10}
        save_file(weights, target / "model.safetensors")
    return dims


def _draw_weights(model: Any) -> None:
    """Weights of which every token and every layer changes the states, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:  # norms, around the 1 or 0 that they start from; biases
                weight.data.add_(noise / 10)
            elif isinstance(module, torch.nn.Embedding):
                weight.data.copy_(noise)
            else:
                weight.data.copy_(noise / weight.shape[-1] ** 0.5)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _tensor_names(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())


def _write_json(path: Path, content: Any) -> None:
    path.unlink(missing_ok=True)  # a link into the folder that is copied
    path.write_text(json.dumps(content), encoding="utf-8")
