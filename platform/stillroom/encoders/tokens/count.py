"""Counts a text's tokens, without loading a model's weights."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stillroom.encoders.model_names import locate_model
from stillroom.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@lru_cache(maxsize=4)  # a folder of documents calls this once per file
def token_counter(model: str) -> Callable[[str], int]:
    """A function that counts a text's tokens, without special ones.

    Raises:
        UserError: when there is no such model, or it has no tokenizer.
    """
    tokenizer = read_tokenizer(model)
    if tokenizer is not None:
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    slow = _slow_tokenizer(model)
    return lambda text: len(slow(text, add_special_tokens=False, verbose=False)["input_ids"])


@lru_cache(maxsize=4)
def read_tokenizer(model: str) -> "Tokenizer | None":
    """A model's tokenizer in the Rust library, which neither cuts nor pads; None where it has only
    one in Python.

    Raises:
        UserError: when there is no such model, or it has no tokenizer.
    """
    file = locate_model(model) / "tokenizer.json"
    if file.is_file():  # the Rust library reads it without torch
        from tokenizers import Tokenizer

        tokenizer: Tokenizer | None = Tokenizer.from_file(str(file))
    else:
        tokenizer = getattr(_slow_tokenizer(model), "backend_tokenizer", None)
    if tokenizer is None:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _slow_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate_model(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            model, "has no tokenizer that can be read", "Save the model's tokenizer into its folder"
        ) from error
