"""The part of a tokenizer that tokenizer.json describes, to read and to replace."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stillroom.errors import UserError


def backend_of(tokenizer: Any, where: str) -> Tokenizer:
    """The tokenizers library's object inside transformers' tokenizer.

    Args:
        where: what needs it, for the error.

    Raises:
        UserError: when there is none: the tokenizer is written in Python.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            where,
            f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, which could be "
            "rewritten",
            "Leave it out, or save the base with a fast tokenizer",
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def without_tokens(tokenizer: Any, tokens: Iterable[str], where: str) -> PreTrainedTokenizerFast:
    """The tokenizer that reads these added tokens as the text that they are written as.

    Raises:
        UserError: as `backend_of`.
    """
    content = json.loads(backend_of(tokenizer, where).to_str())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in set(tokens)
    ]
    return with_backend(tokenizer, Tokenizer.from_str(json.dumps(content)))


def with_backend(tokenizer: Any, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer around another backend, with the settings of the old.

    It is of the general class, since others, such as BertTokenizer, make parts of the backend anew
    when they are loaded, and ignore what tokenizer.json says.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if backend.token_to_id(token) is not None
        },
        extra_special_tokens=tokenizer.extra_special_tokens,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=tokenizer.split_special_tokens,
        chat_template=tokenizer.chat_template,
    )
