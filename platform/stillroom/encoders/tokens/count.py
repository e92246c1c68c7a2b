"""Counts a text's tokens, without loading a model's weights."""

from collections.abc import Callable
from functools import lru_cache

from stillroom.encoders.model_names import locate_model
from stillroom.errors import UserError


@lru_cache(maxsize=4)  # a folder of documents calls this once per file
def token_counter(model: str) -> Callable[[str], int]:
    """A function that counts a text's tokens, without special ones.

    Raises:
        UserError: when there is no such model, or it has no tokenizer.
    """
    folder = locate_model(model)
    file = folder / "tokenizer.json"
    if file.is_file():  # the Rust library reads it without torch
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            model, "has no tokenizer that can be read", "Save the model's tokenizer into its folder"
        ) from error
    return lambda text: len(slow(text, add_special_tokens=False, verbose=False)["input_ids"])
