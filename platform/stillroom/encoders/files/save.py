"""TODO docstring: encoders/files/save.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stillroom.encoders.api_encoder import RemoteEncoder
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import CombinedEncoder
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.files.load import ADAPTER, HEAD_FILE, POOLING, PROJECTION, _hidden
from stillroom.encoders.layers.backbone import (
    HEAD,
)
from stillroom.encoders.layers.lora import (
    is_adapted,
    save_adapter,
)


def save(
    encoder: Encoder | CombinedEncoder | RemoteEncoder,
    folder: str | Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes contract, tokenizer and weights; of a LoRA encoder the adapter alone, of a language
    model's head what was trained, of several encoders each, of an API the contract.

    Without adapters the folder opens in sentence-transformers too.

    Args:
        state_dict: trained tensors by their names in the encoder, where the encoder's own are
            not whole (ZeRO-3).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(encoder, Encoder):
        if isinstance(encoder, CombinedEncoder):
            for name, member in zip(encoder.contract.members, encoder.members, strict=True):
                save(member, folder / name)
        encoder.contract.write(folder)
        return
    whole = {**encoder.state_dict(), **(state_dict or {})}
    contract = encoder.contract
    backbone: Any = encoder.backbone
    weights = _under("backbone.", whole)
    projection = whole.get("projection.weight")
    if is_adapted(backbone):
        save_adapter(backbone, folder / ADAPTER, base=contract.base, state_dict=weights)
    else:
        backbone.save_pretrained(folder, state_dict=weights)
        if sentence_transformers.can_express(contract):
            sentence_transformers.write(folder, contract, _hidden(backbone), projection)
    if projection is not None:
        save_file({"weight": projection.contiguous()}, folder / PROJECTION)
    if encoder.latent_attention is not None:
        latent_attention = _under("latent_attention.", whole)
        save_file({name: t.contiguous() for name, t in latent_attention.items()}, folder / POOLING)
    if encoder.head is not None and encoder.head.weight.requires_grad:
        save_file({HEAD: whole["head.weight"].contiguous()}, folder / HEAD_FILE)
    encoder.tokenizer.save_pretrained(folder)
    contract.write(folder)


def merged(encoder: Encoder, state_dict: Mapping[str, torch.Tensor]) -> Encoder:
    """The encoder with trained tensors put in and its adapters merged, to be saved whole."""
    encoder.load_state_dict(dict(state_dict), strict=False)
    encoder.backbone = encoder.backbone.merge_and_unload()
    return encoder


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
