"""Saves encoders to folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillroom.encoders.api_encoder import ApiEncoder
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder
from stillroom.encoders.files.folder import (
    ADAPTER_FOLDER,
    HEAD_FILE,
    LATENT_ATTENTION_FILE,
    PROJECTION_FILE,
)
from stillroom.encoders.files.pretrained import LM_HEAD_WEIGHT
from stillroom.encoders.files.save_sentence_transformers import inexpressible, write_modules
from stillroom.encoders.files.save_transformer import save_transformer
from stillroom.encoders.layers.backbone import hidden_size
from stillroom.encoders.layers.lora import (
    has_adapter,
    save_adapter,
)
from stillroom.encoders.library_encoder import LibraryEncoder


def save_encoder(
    encoder: Encoder | EnsembleEncoder | LibraryEncoder | ApiEncoder,
    folder: str | Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes contract, tokenizer and weights.

    Writes only the adapter of an encoder that has one, the language model's head only if it was
    trained, all members of an ensemble, and only the contract of an API or of a model that
    sentence-transformers runs. The library can open a folder without an adapter, if it can express
    the contract.

    Args:
        state_dict: trained tensors by their names in the encoder, where the encoder holds only
            parts of them (ZeRO-3).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(encoder, Encoder):
        if isinstance(encoder, EnsembleEncoder):
            for name, member in zip(encoder.contract.members, encoder.members, strict=True):
                save_encoder(member, folder / name)
        encoder.contract.write(folder)
        return
    tensors = {**encoder.state_dict(), **(state_dict or {})}
    contract = encoder.contract
    backbone: Any = encoder.backbone
    weights = _with_prefix("backbone.", tensors)
    projection = _with_prefix("projection.", tensors)
    if has_adapter(backbone):
        save_adapter(backbone, folder / ADAPTER_FOLDER, base=contract.base, state_dict=weights)
    else:
        save_transformer(backbone, folder, state_dict=weights)
        if inexpressible(contract, encoder.tokenizer, hidden_size(backbone)) is None:
            write_modules(folder, contract, hidden_size(backbone), projection)
    if projection:
        save_file(
            {name: tensor.contiguous() for name, tensor in projection.items()},
            folder / PROJECTION_FILE,
        )
    if encoder.latent_attention is not None:
        latent_attention = _with_prefix("latent_attention.", tensors)
        save_file(
            {name: t.contiguous() for name, t in latent_attention.items()},
            folder / LATENT_ATTENTION_FILE,
        )
    if encoder.head is not None and encoder.head.weight.requires_grad:
        save_file({LM_HEAD_WEIGHT: tensors["head.weight"].contiguous()}, folder / HEAD_FILE)
    encoder.tokenizer.save_pretrained(folder)
    contract.write(folder)


def merge_adapters(encoder: Encoder, state_dict: Mapping[str, torch.Tensor]) -> Encoder:
    """The encoder with trained tensors loaded and its adapters merged, to be saved as a complete
    model.
    """
    encoder.load_state_dict(dict(state_dict), strict=False)
    encoder.backbone = encoder.backbone.merge_and_unload()
    return encoder


def _with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names start with the prefix, named without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
