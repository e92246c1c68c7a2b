"""LoRA adapters in PEFT's own format, as its users and the hub have them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict

from stillroom.encoders import files
from stillroom.errors import UserError


def merged_adapter(backbone: Any, folder: Path) -> Any:
    """The backbone with the folder's adapter (Hu et al., 2021, arXiv 2106.09685) in its weights.

    An adapter that was trained on a model with a head fits too: what is the head's is left out.

    Raises:
        UserError: when it is no LoRA adapter, or not one for this architecture.
    """
    saved = files.tensors(folder / SAFETENSORS_WEIGHTS_NAME)
    # BERT's head for another task is no part of our backbones.
    tensors = {name: tensor for name, tensor in saved.items() if ".pooler." not in name}
    config = _config(folder)
    # PEFT names weights by the model that was trained: of one with a head, the backbone is inside.
    inside = f"base_model.model.{backbone.base_model_prefix}."
    with_head = any(name.startswith(inside) for name in tensors)
    model = backbone
    if with_head:
        tensors = {name: t for name, t in tensors.items() if name.startswith(inside)}
        model = torch.nn.Module()
        model.add_module(backbone.base_model_prefix, backbone)
    try:
        adapted = get_peft_model(model, config)
        # PEFT itself only warns of weights that it does not find, and trains or merges without.
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        # What is not the adapter's own may be whole layers that were saved with it.
        strange = tensors.keys() - wanted.keys() - adapted.state_dict().keys()
        if odd := sorted((wanted.keys() - tensors.keys()) | strange):
            raise ValueError(f"{len(odd)} weights of one are not in the other, {odd[0]} first")
        set_peft_model_state_dict(adapted, tensors)
    except (ValueError, KeyError, RuntimeError) as fault:
        raise UserError(
            str(folder),
            f"does not fit {type(backbone).__name__}: {' '.join(str(fault).split())[:300]}",
            "Correct base_model_name_or_path in adapter_config.json",
        ) from fault
    merged = adapted.merge_and_unload()
    return getattr(merged, backbone.base_model_prefix) if with_head else merged


def _config(folder: Path) -> LoraConfig:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(
            str(folder / "adapter_config.json"),
            f"cannot be read: {' '.join(str(fault).split())}",
            "Save the adapter again with PEFT",
        ) from fault
    if not isinstance(config, LoraConfig):
        raise UserError(
            str(folder), f"is a {config.peft_type} adapter", "Use a LoRA adapter, or merge it first"
        )
    config.task_type = None  # it would want a head
    config.base_model_name_or_path = None  # known, and PEFT would warn of another
    return config
