"""LoRA adapters (Hu et al., 2021, arXiv 2106.09685) in the format of PEFT."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from stillroom.encoders.safe_read import not_safetensors_error, read_tensors
from stillroom.errors import UserError, one_line

# PEFT reads the property under its old name, as older versions of transformers need it.
warnings.filterwarnings(
    "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
)


@dataclass(frozen=True)
class LoraOptions:
    """The size and kind of an adapter, named as in PEFT.

    Attributes:
        target_modules: "all-linear", or ends of the names of layers that get an adapter.
        use_rslora: rsLoRA, arXiv 2312.03732.
        use_dora: DoRA, arXiv 2402.09353.
    """

    rank: int
    alpha: int
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False


def add_lora(backbone: Any, options: LoraOptions) -> Any:
    """Freezes the backbone and adds an adapter to it."""
    targets = options.target_modules
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )
    return _without_float32_copies(get_peft_model(backbone, config))


def has_adapter(backbone: Any) -> bool:
    """Whether the backbone has an adapter that is not merged."""
    return isinstance(backbone, PeftModel)


def check_adapter(folder: Path) -> None:
    """Raises UserError for an adapter without Safetensors, since PEFT would unpickle other formats,
    and for one that is cut short or not finite."""
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        raise not_safetensors_error(weights, "it is missing")
    read_tensors(weights)


def load_adapter(backbone: Any, folder: Path, *, trainable: bool) -> Any:
    """The backbone with an adapter that `save_adapter` wrote and `check_adapter` accepted.

    Args:
        trainable: keeps the adapter separate, to train it further; otherwise it is merged.
    """
    adapted = PeftModel.from_pretrained(backbone, folder, is_trainable=trainable)
    return _without_float32_copies(adapted) if trainable else adapted.merge_and_unload()


def save_adapter(
    backbone: Any, folder: Path, *, base: str, state_dict: Mapping[str, Tensor]
) -> None:
    """Writes the adapter without its base.

    Args:
        base: the name of the base to write, instead of its path on this machine.
        state_dict: all tensors of the backbone with its adapter.
    """
    config = backbone.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))
    adapter = get_peft_model_state_dict(
        backbone, state_dict=dict(state_dict), save_embedding_layers=False
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in adapter.items()},
        folder / SAFETENSORS_WEIGHTS_NAME,
    )


def merge_adapter(backbone: Any, folder: Path) -> Any:
    """The backbone with an adapter that others trained merged into its weights.

    The adapter may have been trained on a model with a head; the head's part is left out. It may
    bring the table of a larger vocabulary, for which the backbone's is resized.

    Raises:
        UserError: when it is not a LoRA adapter, or belongs to another architecture.
    """
    saved = read_tensors(folder / SAFETENSORS_WEIGHTS_NAME)
    # Our backbones have no pooler, BERT's head for another task.
    tensors = {name: tensor for name, tensor in saved.items() if ".pooler." not in name}
    config = _config(folder)
    # PEFT names weights as in the model that was trained; one with a head has the backbone inside.
    prefix = f"base_model.model.{backbone.base_model_prefix}."
    with_head = any(name.startswith(prefix) for name in tensors)
    model = backbone
    if with_head:
        tensors = {name: t for name, t in tensors.items() if name.startswith(prefix)}
        model = torch.nn.Module()
        model.add_module(backbone.base_model_prefix, backbone)
    tensors = _resize_to_embeddings(backbone, tensors)
    if config.modules_to_save:
        inside = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
        config.modules_to_save = [name for name in config.modules_to_save if name in inside] or None
    try:
        adapted = get_peft_model(model, config)
        # PEFT itself only warns of missing weights, and trains or merges without them.
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        # Other weights than the adapter's may be full layers that were saved with it.
        unknown = tensors.keys() - expected.keys() - adapted.state_dict().keys()
        if different := sorted((expected.keys() - tensors.keys()) | unknown):
            raise ValueError(
                f"{len(different)} weights of one are not in the other, {different[0]} first"
            )
        set_peft_model_state_dict(adapted, tensors)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            str(folder),
            f"does not fit {type(backbone).__name__}: {one_line(error, 300)}",
            "Correct base_model_name_or_path in adapter_config.json",
        ) from error
    merged = adapted.merge_and_unload()
    return getattr(merged, backbone.base_model_prefix) if with_head else merged


def _resize_to_embeddings(backbone: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the backbone's embeddings as many rows as the adapter's own have, if it has any.

    Returns:
        The tensors without the copies of the embeddings that PEFT saves beside the trained ones.
    """
    table = backbone.get_input_embeddings()
    name = next(name for name, module in backbone.named_modules() if module is table)
    saved = [tensor for key, tensor in tensors.items() if key.endswith(f".{name}.weight")]
    if not saved:
        return tensors
    if len(saved[0]) != table.num_embeddings:
        # The new rows are overwritten: no need to draw them like the old ones.
        backbone.resize_token_embeddings(len(saved[0]), mean_resizing=False)
    copies = (f".{name}.modules_to_save.weight", f".{name}.original_module.weight")
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(copies)}


def _config(folder: Path) -> LoraConfig:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(folder / "adapter_config.json"),
            f"cannot be read: {one_line(error)}",
            "Save the adapter again with PEFT",
        ) from error
    if not isinstance(config, LoraConfig):
        raise UserError(
            str(folder), f"is a {config.peft_type} adapter", "Use a LoRA adapter, or merge it first"
        )
    config.task_type = None  # PEFT would expect a head
    config.base_model_name_or_path = None  # we have the base; PEFT would warn of another name
    return config


def _without_float32_copies(adapted: Any) -> Any:
    """Stops PEFT from copying each layer's input to float32, which autocast would round again.
    Gradients stay the same, and training needs less time and memory.
    """
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return adapted
