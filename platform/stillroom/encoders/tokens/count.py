"""How many tokens a text has for a model, without loading its weights."""

from collections.abc import Callable
from functools import lru_cache

from stillroom.encoders.model_names import locate
from stillroom.errors import UserError


@lru_cache(maxsize=4)  # a folder of documents asks for one a file
def token_counter(model: str) -> Callable[[str], int]:
    """Counts a text's tokens, special ones left out.

    Raises:
        UserError: when there is no such model, or it has no tokenizer.
    """
    folder = locate(model)
    file = folder / "tokenizer.json"
    if file.is_file():  # of which Rust reads enough, without torch
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise UserError(
            model, "has no tokenizer that can be read", "Save the model's tokenizer into its folder"
        ) from fault
    return lambda text: len(slow(text, add_special_tokens=False, verbose=False)["input_ids"])
