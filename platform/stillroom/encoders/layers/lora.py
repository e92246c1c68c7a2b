"""LoRA adapters in PEFT's own format, as its users and the hub have them.

After Hu et al., 2021, arXiv 2106.09685.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from stillroom.encoders import safe_read as files
from stillroom.errors import UserError


def add_lora(
    backbone: Any,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str | Sequence[str],
    rank_stabilised: bool = False,
    decomposed: bool = False,
) -> Any:
    """Freezes the backbone and puts adapters on it.

    Args:
        rank_stabilised: rsLoRA, arXiv 2312.03732.
        decomposed: DoRA, arXiv 2402.09353.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        use_rslora=rank_stabilised,
        use_dora=decomposed,
    )
    return _without_copies(get_peft_model(backbone, config))


def is_adapted(backbone: Any) -> bool:
    return isinstance(backbone, PeftModel)


def check_adapter(folder: Path) -> None:
    """Raises UserError where no weights in Safetensors lie: PEFT itself would unpickle others."""
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        raise files.no_safetensors(weights, "it is missing")


def load_adapter(backbone: Any, folder: Path, *, trainable: bool) -> Any:
    """The backbone with the adapter that `save_adapter` left, and `check_adapter` passed: on it to
    train on, else merged."""
    adapted = PeftModel.from_pretrained(backbone, folder, is_trainable=trainable)
    return _without_copies(adapted) if trainable else adapted.merge_and_unload()


def save_adapter(
    backbone: Any, folder: Path, *, base: str, state_dict: Mapping[str, Tensor]
) -> None:
    """Writes the adapter alone.

    Args:
        base: what is written to be below it, and not where that happened to lie here.
        state_dict: the adapted backbone's tensors, whole.
    """
    config = backbone.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    own = get_peft_model_state_dict(
        backbone, state_dict=dict(state_dict), save_embedding_layers=False
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in own.items()},
        folder / SAFETENSORS_WEIGHTS_NAME,
    )


def merged_adapter(backbone: Any, folder: Path) -> Any:
    """The backbone with the folder's adapter, which others made, in its weights.

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


def _without_copies(adapted: Any) -> Any:
    """Stops PEFT from copying every layer's input to float32, which autocast would only round
    again: the same gradients, sooner and in less memory."""
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return adapted
