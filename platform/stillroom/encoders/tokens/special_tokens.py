"""The special tokens that a tokenizer puts before and behind every text, such as CLS and EOS.

They are the tokenizer's: in a folder, the template of tokenizer.json. Whatever opens the folder
(sentence-transformers, vLLM, ONNX pipelines) then gives a model the same ids.
"""

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from stillroom.encoders.tokens.tokenizer_json import backend_of, with_backend
from stillroom.errors import UserError

logger = logging.getLogger(__name__)

TOKENIZER_CONFIG = "tokenizer_config.json"

# Texts to see special tokens around; a tokenizer for one script may drop the others' letters.
PROBES = ("a", "1", "中", "я")


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids before and behind every text.

    Raises:
        UserError: when the tokenizer changes the text itself where it adds special tokens, or gives
            tokens types other than 0, which only pairs of texts should have.
    """
    for probe in PROBES:
        plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
        encoded = tokenizer(probe, add_special_tokens=True)
        if plain:
            break
    ids = encoded["input_ids"]
    starts = range(len(ids) - len(plain) + 1)
    at = next((i for i in starts if ids[i : i + len(plain)] == plain), None)
    problem = None
    if at is None or not plain:
        problem = "gives a text other ids when it adds special tokens"
    elif any(encoded.get("token_type_ids", ())):
        problem = "gives the tokens of a single text other types than 0"
    if at is None or problem is not None:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__}",
            f"{problem}, which is not supported",
            "Use a base with another tokenizer",
        )
    return ids[:at], ids[at + len(plain) :]


def append_eos(tokenizer: Any) -> Any:
    """The tokenizer with EOS behind every text, unless its template has an end already.

    Raises:
        UserError: when it has no EOS token, or no template that can be written.
    """
    start, end = special_tokens_around(tokenizer)
    if end:
        return tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(
            "append_eos",
            "the tokenizer has no EOS token",
            "Set append_eos: false, or use a base that has one",
        )
    return _with_template(tokenizer, start, [tokenizer.eos_token_id], "append_eos")


def add_configured_tokens(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer with the BOS and EOS that tokenizer_config.json asks for and tokenizer.json
    lacks.

    transformers 5 follows tokenizer.json alone, and leaves them out without a word: the model then
    reads other ids than in its training. What is saved afterwards has them in its template, so only
    a published folder gets this treatment, and its line in the log.
    """
    path = folder / TOKENIZER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return tokenizer
    if not (config.get("add_bos_token") or config.get("add_eos_token")):
        return tokenizer
    start, end = special_tokens_around(tokenizer)
    added = []
    if config.get("add_bos_token") and not start and tokenizer.bos_token_id is not None:
        start = [tokenizer.bos_token_id]
        added.append(f"{tokenizer.bos_token} before")
    if config.get("add_eos_token") and not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
        added.append(f"{tokenizer.eos_token} behind")
    if not added:
        return tokenizer
    logger.warning(
        "%s: put %s every text, as %s says and tokenizer.json does not",
        folder, " and ".join(added), TOKENIZER_CONFIG,
    )  # fmt: skip
    return _with_template(tokenizer, start, end, str(path))


def lower_case_first(tokenizer: Any) -> Any:
    """The tokenizer with texts lower-cased before anything else.

    Raises:
        UserError: when it has no normaliser that can be changed.
    """
    backend = Tokenizer.from_str(backend_of(tokenizer, "do_lower_case").to_str())
    steps = [normalizers.Lowercase()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)
    return with_backend(tokenizer, backend)


def _with_template(tokenizer: Any, start: list[int], end: list[int], where: str) -> Any:
    """The tokenizer with these ids around every text."""
    content = json.loads(backend_of(tokenizer, where).to_str())
    before, behind = (tokenizer.convert_ids_to_tokens(ids) for ids in (start, end))

    def around(text: str, type_id: int) -> list[dict[str, Any]]:
        return [
            *({"SpecialToken": {"id": token, "type_id": type_id}} for token in before),
            {"Sequence": {"id": text, "type_id": type_id}},
            *({"SpecialToken": {"id": token, "type_id": type_id}} for token in behind),
        ]

    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]}
            for token, i in zip([*before, *behind], [*start, *end], strict=True)
        },
    }
    old = content["post_processor"] or {}
    # Byte-level tokenizers also correct there which characters a token stands for.
    offsets = [part for part in old.get("processors", [old]) if part.get("type") == "ByteLevel"]
    content["post_processor"] = {"type": "Sequence", "processors": [*offsets, template]}
    return with_backend(tokenizer, Tokenizer.from_str(json.dumps(content)))
