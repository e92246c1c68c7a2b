"""Writes a transformer as a Hugging Face folder."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging


def declare_attention(config: Any) -> None:
    """Writes a decoder's attention under both names that other programs read.

    transformers, vLLM and, of Qwen2, text-embeddings-inference read `is_causal`; of Llama, Mistral
    and Qwen3 the last reads `use_bidirectional_attention`. Gemma's classes have that field
    themselves, where it means another window as well.
    """
    name = "use_bidirectional_attention"
    if hasattr(type(config), name):
        return
    bidirectional = getattr(config, "is_causal", None) is False
    if bidirectional or getattr(config, name, False):
        setattr(config, name, bidirectional)


def save_transformer(model: Any, folder: Path, **options: Any) -> None:
    """`save_pretrained`, without the output of libraries while they save.

    Args:
        options: further arguments of `save_pretrained`.
    """
    declare_attention(model.config)
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        # accelerate imports DeepSpeed here if it is installed, which would warn of the missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(folder, **options)


def save_config(model: Any, folder: Path) -> None:
    """Writes config.json as `save_transformer` does, without the weights."""
    config = copy.deepcopy(model.config)
    declare_attention(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
