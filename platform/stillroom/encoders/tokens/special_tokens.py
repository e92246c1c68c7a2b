"""The special tokens that a tokenizer puts before and behind every text, such as CLS and EOS.

They are the tokenizer's: in a folder, the template of tokenizer.json. Whatever opens the folder
(sentence-transformers, vLLM, ONNX pipelines) then gives a model the same ids.
"""

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

from stillroom.errors import UserError

logger = logging.getLogger(__name__)

TOKENIZER_CONFIG = "tokenizer_config.json"


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids before and behind every text.

    Raises:
        UserError: when the tokenizer changes the text itself where it adds special tokens.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = range(len(ids) - len(plain) + 1)
    at = next((i for i in starts if ids[i : i + len(plain)] == plain), None)
    if at is None or not plain:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__}",
            "gives a text other ids when it adds special tokens",
            "Use a base with another tokenizer",
        )
    return ids[:at], ids[at + len(plain) :]


def append_eos(tokenizer: Any) -> None:
    """Writes EOS into the tokenizer's template, unless its template has an end already.

    Raises:
        UserError: when it has no EOS token, or no template that can be written.
    """
    start, end = special_tokens_around(tokenizer)
    if end:
        return
    if tokenizer.eos_token_id is None:
        raise UserError(
            "append_eos",
            "the tokenizer has no EOS token",
            "Set append_eos: false, or use a base that has one",
        )
    _set_template(tokenizer, start, [tokenizer.eos_token_id])


def add_configured_tokens(tokenizer: Any, folder: Path) -> None:
    """Adds the BOS and EOS that tokenizer_config.json asks for and tokenizer.json lacks.

    transformers 5 follows tokenizer.json alone, and leaves them out without a word: the model then
    reads other ids than in its training.
    """
    try:
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not (config.get("add_bos_token") or config.get("add_eos_token")):
        return
    start, end = special_tokens_around(tokenizer)
    added = []
    if config.get("add_bos_token") and not start and tokenizer.bos_token_id is not None:
        start = [tokenizer.bos_token_id]
        added.append(f"{tokenizer.bos_token} before")
    if config.get("add_eos_token") and not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
        added.append(f"{tokenizer.eos_token} behind")
    if added:
        _set_template(tokenizer, start, end)
        logger.info(
            "%s: put %s every text, as %s says and tokenizer.json does not",
            folder, " and ".join(added), TOKENIZER_CONFIG,
        )  # fmt: skip


def lower_case_first(tokenizer: Any) -> None:
    """Makes a tokenizer lower-case texts before anything else.

    Raises:
        UserError: when it has no normaliser that can be changed.
    """
    backend = _backend(tokenizer, "lower-case texts")
    steps = [normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(
        steps if backend.normalizer is None else [*steps, backend.normalizer]
    )


def _backend(tokenizer: Any, purpose: str) -> Any:
    """The tokenizers library's object, which tokenizer.json describes."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__}",
            f"has no tokenizer.json that could {purpose}",
            "Use a base that has one",
        )
    return tokenizer.backend_tokenizer


def _set_template(tokenizer: Any, start: list[int], end: list[int]) -> None:
    before, behind = (tokenizer.convert_ids_to_tokens(ids) for ids in (start, end))
    _backend(tokenizer, "add special tokens").post_processor = TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B:1", *behind],
        special_tokens=list({*zip([*before, *behind], [*start, *end], strict=True)}),
    )
