"""The tokenizer's files in an export, for programs that read no other description of the model."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.tokens.special_tokens import TOKENIZER_CONFIG


def padding_side(encoder: Encoder) -> Literal["left", "right"]:
    """Where other programs should pad: for a model that pools its last token on the left, since
    transformers.js takes the last position, whatever is there. Not with learned positions, which
    padding on the left would move."""
    rotary = getattr(encoder.backbone.config, "rope_parameters", None)
    return "left" if encoder.contract.pooling == "last" and rotary else "right"


def write_tokenizer(
    tokenizer: Any,
    folder: Path,
    *,
    max_tokens: int | None = None,
    input_names: Sequence[str] | None = None,
    padding_side: Literal["left", "right"] | None = None,
) -> None:
    """Writes tokenizer.json and tokenizer_config.json; None keeps the tokenizer's own setting.

    Args:
        max_tokens: where fastembed and transformers.js cut texts.
        input_names: the graph's; the tokenizer gives those of them that it can.
        padding_side: of a batch.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.is_fast:  # what earlier calls have set, tokenizer.json would keep
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    if max_tokens is not None:
        tokenizer.model_max_length = max_tokens
    if input_names is not None:
        tokenizer.model_input_names = [name for name in input_names if name != "pool_mask"]
    if padding_side is not None:
        tokenizer.padding_side = padding_side
    tokenizer.save_pretrained(folder)
    file = folder / TOKENIZER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    if max_tokens is not None:
        config.pop("max_length", None)  # a limit of earlier calls, which fastembed obeys
    # The names that transformers 4 has, which Optimum requires; 5 reads them as well.
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for name in ("model_input_names", "padding_side"):
        config[name] = getattr(tokenizer, name)
    file.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
