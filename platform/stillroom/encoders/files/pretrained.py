"""Loads tokenizer, transformer and language model's head of a Hugging Face folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from stillroom.encoders.contract import Attention
from stillroom.encoders.layers.attention import check_attention
from stillroom.encoders.layers.backbone import is_decoder, without_pooler
from stillroom.encoders.remote_code import needs_remote_code, remote_code_error
from stillroom.encoders.tokens.special_tokens import add_configured_tokens
from stillroom.errors import UserError, one_line

LM_HEAD_WEIGHT = "lm_head.weight"


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer; one without a padding token pads with EOS.

    Raises:
        UserError: when there is none, or it needs code that is not trusted.
    """
    if not trust_remote_code and needs_remote_code(folder):
        raise remote_code_error(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            str(folder),
            f"has no tokenizer that loads: {one_line(error)}",
            "Save the model's tokenizer into its folder",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            str(folder),
            "has a tokenizer without a token for padding, for the end or for unknown words",
            "Name one of its tokens as pad_token in tokenizer_config.json",
        )
    add_configured_tokens(tokenizer, folder)
    return tokenizer


def load_backbone(
    folder: Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """The transformer without its head, from Safetensors only.

    Args:
        attention: None keeps the base's own.
        trust_remote_code: runs Python code in the folder, if the model needs it.

    Raises:
        UserError: when it cannot be loaded, needs code that is not trusted, or cannot use this
            attention.
    """
    if not trust_remote_code and needs_remote_code(folder):
        raise remote_code_error(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if attention is not None and is_decoder(config):
            # On the config: newer versions of transformers silently ignore it on the modules.
            config.is_causal = attention == "causal"
            # A window on every layer hides distant tokens, so it is removed. A window on some
            # layers is part of the architecture, as in ModernBERT, whose other layers see all
            # tokens.
            windowed = getattr(config, "sliding_window", None) and not hasattr(
                config, "layer_types"
            )
            if windowed and attention == "bidirectional":
                config.sliding_window = None
        # Progress bars garble a job's log; the causes of the warnings are checked below.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        backbone, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            str(folder),
            f"cannot be loaded: {one_line(error, 300)}",
            "Give a Hugging Face folder with Safetensors whose architecture transformers knows",
        ) from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(
            str(folder),
            f"lacks {len(missing)} weights of its architecture, {missing[0]} first",
            "Save the model again: those weights would be random",
        )
    backbone = without_pooler(backbone)
    check_attention(backbone, attention)
    return backbone


def load_head(folders: Sequence[Path], backbone: Any) -> torch.nn.Linear:
    """The head of a decoder's language model: hidden → vocabulary, without a bias.

    Args:
        folders: where to look for it, in this order.

    Raises:
        UserError: when there is none.
    """
    weight = None
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        with safe_open(file, "pt") as tensors:
            if LM_HEAD_WEIGHT in set(tensors.keys()):
                weight = tensors.get_tensor(LM_HEAD_WEIGHT)
                break
    if weight is None and is_decoder(backbone.config) and backbone.config.tie_word_embeddings:
        weight = backbone.get_input_embeddings().weight.detach().clone()
    if weight is None:
        raise UserError(
            str(folders[0]),
            "has no language model's head, which predicts tokens",
            "Name a causal language model as the base, or leave out mntp and joint phases",
        )
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=backbone.dtype)
    head.weight.data.copy_(weight)
    return head
