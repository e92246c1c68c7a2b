"""A backbone of another size than its base's: some of its layers, or random weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from stillroom.encoders.contract import Attention
from stillroom.encoders.layers.backbone import fitted, is_decoder, positions_before
from stillroom.errors import UserError

# Fields of a config that list something a layer: its kind of attention, or its window.
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_window")

# Names that configs have for a size, the usual one first.
FIELDS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "intermediate": ("intermediate_size", "hidden_dim"),
}

# Widths that follow the states', where they do in the base.
AS_HIDDEN = ("embedding_size", "pooler_hidden_size")

# What follows from heads and hidden unless it is said.
PER_HEAD = ("head_dim", "num_key_value_heads")


def cut(backbone: Any, layers: Sequence[int]) -> None:
    """Keeps only the layers of these numbers, in this order.

    Raises:
        UserError: when one is not there, or what is left would load as another model.
    """
    config = backbone.config
    name = _blocks(backbone)
    inside, _, last = name.rpartition(".")
    blocks = backbone.get_submodule(name)
    before = len(blocks)
    for number in layers:
        if number >= before:
            raise UserError(
                "student.layers", f"there is no layer {number}", f"Use 0 to {before - 1}"
            )
    kept = torch.nn.ModuleList(blocks[number] for number in layers)
    setattr(backbone.get_submodule(inside), last, kept)
    # What the architecture says of each layer, such as ModernBERT's global and local attention.
    for field in PER_LAYER:
        value = getattr(config, field, None)
        if isinstance(value, (list, tuple)) and len(value) == before:
            setattr(config, field, [value[number] for number in layers])
    config.num_hidden_layers = len(layers)
    _loads_as_it_is(backbone, layers)


def _blocks(backbone: Any) -> str:
    """Where a backbone's layers are: the one list of so many that lies in no other."""
    count = backbone.config.num_hidden_layers
    lists = [
        name for name, module in backbone.named_modules() if isinstance(module, torch.nn.ModuleList)
    ]
    outermost = [name for name in lists if not any(name.startswith(f"{at}.") for at in lists)]
    found = [name for name in outermost if len(backbone.get_submodule(name)) == count]
    if len(found) != 1:
        raise UserError(
            "student.layers",
            f"{type(backbone).__name__} does not keep its {count} layers in one list",
            "Leave layers out, or use a base of another architecture",
        )
    return found[0]


def _loads_as_it_is(backbone: Any, layers: Sequence[int]) -> None:
    """Some layers differ by their place: ModernBERT's first one has no norm before attention."""
    with torch.device("meta"):
        made = AutoModel.from_config(backbone.config)
    ours, theirs = (
        {name: t.shape for name, t in model.state_dict().items() if "pooler" not in name}
        for model in (backbone, made)
    )
    if ours != theirs:
        odd = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        raise UserError(
            f"student.layers: {list(layers)}",
            f"the layers of {type(backbone).__name__} differ by their place: {odd[0]} would be "
            "lost or random",
            "Keep layer 0, and keep it first",
        )


def random_backbone(
    folder: Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    size: Mapping[str, int],
    max_tokens: int | None,
    seed: int,
) -> Any:
    """As `load_backbone`, of the base's architecture alone: its weights are random.

    Args:
        size: layers, hidden, heads, and intermediate (4 × hidden without it).
        max_tokens: the longest text, where each position has weights; None: the base's.

    Raises:
        UserError: when the architecture cannot be of that size.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if is_decoder(config):
        raise UserError(
            "student.size", f"{config.model_type} is a decoder", "Name a BERT-like base"
        )
    fields = config.to_dict()
    for field in AS_HIDDEN:
        if fields.get(field) == config.hidden_size:
            fields[field] = size["hidden"]
    for field in (*PER_LAYER, *PER_HEAD):  # the architecture's own rule makes them anew
        fields.pop(field, None)
    for what, value in {"intermediate": 4 * size["hidden"], **size}.items():
        names = [config.attribute_map.get(name, name) for name in FIELDS[what]]
        there = [name for name in names if name in fields]
        if not there:
            raise UserError(
                f"student.size.{what}",
                f"{config.model_type} has no such size",
                "Leave it out, or name a base of another architecture",
            )
        fields[there[0]] = value
    try:
        if max_tokens is not None:
            with torch.device("meta"):
                before = positions_before(AutoModel.from_config(type(config).from_dict(fields)))
            fields["max_position_embeddings"] = max_tokens + before
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = AutoModel.from_config(type(config).from_dict(fields), dtype=dtype)
    except ValueError as fault:
        raise UserError(
            "student.size",
            f"{config.model_type} cannot be of it: {' '.join(str(fault).split())[:300]}",
            "Correct the sizes",
        ) from fault
    return fitted(backbone.eval(), attention)
