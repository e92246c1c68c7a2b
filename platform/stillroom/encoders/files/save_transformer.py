"""Writes a transformer as a Hugging Face folder."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging


def save_transformer(model: Any, folder: Path, **options: Any) -> None:
    """`save_pretrained`, without the output of libraries while they save.

    Args:
        options: further arguments of `save_pretrained`.
    """
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        # accelerate imports DeepSpeed here if it is installed, which would warn of the missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(folder, **options)
