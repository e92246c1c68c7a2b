"""Properties and settings of transformers of any architecture: sizes, dropout, activation
checkpointing.
"""

import warnings
from typing import Any

import torch
from transformers import AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from stillroom.encoders.safe_read import is_finite
from stillroom.errors import UserError

LONGEST_INPUT = 32768  # tokens of a text, where a model's files name no limit


def without_pooler(backbone: Any) -> Any:
    """The backbone without BERT's pooler, a head for another task, which must not be counted or
    decayed.
    """
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def checkpoint_activations(backbone: Any) -> None:
    """Turns on activation checkpointing (arXiv 1604.06174): takes a third more time, and memory
    that hardly grows with the number of layers.

    Raises:
        UserError: when the architecture does not support it.
    """
    try:
        with warnings.catch_warnings():
            # Older versions of transformers that we support lack the new name.
            warnings.simplefilter("ignore", FutureWarning)
            # Reentrant checkpointing loses the adapters' gradients: the first input needs none.
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            "gradient_checkpointing",
            f"{type(backbone).__name__} cannot compute its activations again",
            "Leave it off, and lower micro_batch_tokens",
        ) from error


def set_dropout(backbone: Any, share: float) -> None:
    """Sets every dropout of the model, including those inside attention."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share


def broken_weight(model: torch.nn.Module) -> str | None:
    """The name of a weight that holds NaN or an infinite number; None if all are finite."""
    for name, weight in model.named_parameters():
        if not is_finite(weight.detach()):
            return name
    return None


def is_decoder(config: Any) -> bool:
    """Whether the architecture was made to generate text, independent of its current attention."""
    custom = getattr(config, "auto_map", None) or {}  # of a model that comes with its own code
    return (
        config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
        and "AutoModelForMaskedLM" not in custom
    )


def backbone_class(config: Any) -> Any:
    """The class of transformers that loads the architecture: of T5, its encoder alone.

    Raises:
        UserError: for other models of an encoder and a decoder, whose states are the decoder's.
    """
    whole = MODEL_MAPPING_NAMES.get(config.model_type)
    if MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, whole) != whole:
        return AutoModelForTextEncoding
    if config.is_encoder_decoder:
        raise UserError(
            str(config.name_or_path or config.model_type),
            f"is an encoder with a decoder, a {config.model_type}, of which only T5's can be split",
            "Use a model that is one of the two",
        )
    return AutoModel


def position_rows(backbone: Any) -> int | None:
    """The most tokens that the model's position table has rows for; None without such a table."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, torch.nn.Embedding):
        return None
    return table.num_embeddings - position_offset(backbone)


def position_offset(backbone: Any) -> int:
    """The position of a text's first token: models like RoBERTa count from behind the padding's
    id, and the rows of the position table before it are unused."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def hidden_size(backbone: Any) -> int:
    """Dims of a token's state."""
    return int(backbone.config.hidden_size)


def max_input_tokens(backbone: Any, tokenizer: Any) -> int:
    """The most ids of a text that the model reads, as far as its files say it."""
    positions = getattr(backbone.config, "max_position_embeddings", None) or LONGEST_INPUT
    positions = positions if positions > 0 else LONGEST_INPUT  # XLNet's is -1
    longest = min(tokenizer.model_max_length, LONGEST_INPUT)
    return int(min(positions - position_offset(backbone), longest))
