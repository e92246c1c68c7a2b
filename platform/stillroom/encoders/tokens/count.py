"""Counts a text's tokens, without loading a model's weights."""

from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=4)  # a folder of documents calls this once per file
def token_counter(model: str) -> Callable[[str], int]:
    """A function that counts a text's tokens, without special ones.

    Raises:
        UserError: when there is no such model, or its tokenizer cannot be loaded.
    """
    # Imported here: it loads torch.
    from stillroom.encoders.files.inputs import model_tokenizer

    tokenizer = model_tokenizer(model)
    if not tokenizer.is_fast:
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    backend = tokenizer.backend_tokenizer  # half the time of transformers' own call
    backend.no_truncation()
    backend.no_padding()
    return lambda text: len(backend.encode(text, add_special_tokens=False).ids)
