"""A transformer of another size than its base's: some of its layers, or random weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from stillroom.encoders.contract import Attention
from stillroom.encoders.layers.attention import set_attention
from stillroom.encoders.layers.backbone import (
    backbone_class,
    is_decoder,
    position_offset,
    without_pooler,
)
from stillroom.errors import UserError, one_line

# Fields of a config with one entry per layer: its kind of attention, or its window.
PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "attention_window")

# Names that configs have for a size, the usual one first.
SIZE_FIELDS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "intermediate": ("intermediate_size", "hidden_dim", "d_ff"),
}

# Sizes that equal the hidden size, where they do so in the base.
SAME_AS_HIDDEN_FIELDS = ("embedding_size", "pooler_hidden_size")

# Sizes that follow from heads and hidden unless they are set.
PER_HEAD_FIELDS = ("head_dim", "num_key_value_heads")


def keep_layers(backbone: Any, layers: Sequence[int]) -> None:
    """Keeps only the layers with these numbers, in this order.

    Raises:
        UserError: when there is no such layer, or the remaining ones would load as another model.
    """
    config = backbone.config
    name = _layer_list(backbone)
    parent, _, attribute = name.rpartition(".")
    all_layers = backbone.get_submodule(name)
    count = len(all_layers)
    for number in layers:
        if number >= count:
            raise UserError(
                "student.layers", f"there is no layer {number}", f"Use 0 to {count - 1}"
            )
    kept_layers = torch.nn.ModuleList(all_layers[number] for number in layers)
    setattr(backbone.get_submodule(parent), attribute, kept_layers)
    for field in PER_LAYER_FIELDS:
        value = getattr(config, field, None)
        if isinstance(value, (list, tuple)) and len(value) == count:
            setattr(config, field, [value[number] for number in layers])
    config.num_hidden_layers = len(layers)
    _check_loads_unchanged(backbone, layers)


def random_backbone(
    folder: Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    size: Mapping[str, int],
    max_tokens: int | None,
    seed: int,
) -> Any:
    """As `load_backbone`, with random weights: only the architecture is the base's.

    Args:
        size: layers, hidden, heads, and intermediate (4 × hidden without it).
        max_tokens: sets the number of position embeddings; None: the base's.

    Raises:
        UserError: when the architecture cannot have that size.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if is_decoder(config):
        raise UserError(
            "student.size", f"{config.model_type} is a decoder", "Name a BERT-like base"
        )
    fields = _config_fields(config, size)
    build = backbone_class(config).from_config
    try:
        if max_tokens is not None:
            with torch.device("meta"):
                offset = position_offset(build(type(config).from_dict(fields)))
            fields["max_position_embeddings"] = max_tokens + offset
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = build(type(config).from_dict(fields), dtype=dtype)
    except ValueError as error:
        raise UserError(
            "student.size",
            f"{config.model_type} cannot have it: {one_line(error, 300)}",
            "Correct the sizes",
        ) from error
    backbone = without_pooler(backbone.eval())
    set_attention(backbone, attention)
    return backbone


def _config_fields(config: Any, size: Mapping[str, int]) -> dict[str, Any]:
    """The base's config with another size."""
    fields: dict[str, Any] = config.to_dict()
    for field in SAME_AS_HIDDEN_FIELDS:
        if fields.get(field) == config.hidden_size:
            fields[field] = size["hidden"]
    for field in (*PER_LAYER_FIELDS, *PER_HEAD_FIELDS):  # the config's class fills them in again
        fields.pop(field, None)
    for name, value in {"intermediate": 4 * size["hidden"], **size}.items():
        candidates = [config.attribute_map.get(field, field) for field in SIZE_FIELDS[name]]
        present = [field for field in candidates if field in fields]
        if not present:
            raise UserError(
                f"student.size.{name}",
                f"{config.model_type} has no such size",
                "Leave it out, or name a base of another architecture",
            )
        fields[present[0]] = value
    return fields


def _layer_list(backbone: Any) -> str:
    """The name of the module list that holds a backbone's layers: the only list of that length that
    is not inside another list.
    """
    count = backbone.config.num_hidden_layers
    lists = [
        name for name, module in backbone.named_modules() if isinstance(module, torch.nn.ModuleList)
    ]
    outermost = [name for name in lists if not any(name.startswith(f"{at}.") for at in lists)]
    names = [name for name in outermost if len(backbone.get_submodule(name)) == count]
    if len(names) != 1:
        raise UserError(
            "student.layers",
            f"{type(backbone).__name__} does not keep its {count} layers in one list",
            "Leave layers out, or use a base of another architecture",
        )
    return names[0]


def _check_loads_unchanged(backbone: Any, layers: Sequence[int]) -> None:
    """Refuses layers that the architecture would build differently at their new position:
    ModernBERT's first layer, for one, has no norm before attention.
    """
    with torch.device("meta"):
        rebuilt = backbone_class(backbone.config).from_config(backbone.config)
    ours, theirs = (
        {name: t.shape for name, t in model.state_dict().items() if "pooler" not in name}
        for model in (backbone, rebuilt)
    )
    if ours != theirs:
        names = {**ours, **theirs}
        different = sorted(name for name in names if ours.get(name) != theirs.get(name))
        raise UserError(
            f"student.layers: {list(layers)}",
            f"the layers of {type(backbone).__name__} differ by position: {different[0]} would "
            "be lost or random",
            "Keep layer 0, and keep it first",
        )
