"""Inputs as both protocols allow them: a text, texts, token ids or lists of token ids."""

from collections.abc import Sequence
from typing import Any


def split_inputs(inputs: str | Sequence[Any]) -> tuple[list[str], list[list[int]] | None]:
    """(texts, None) for an input of texts; (no texts, token ids of each) for one of token ids."""
    several = [inputs] if isinstance(inputs, str) else inputs
    texts = [text for text in several if isinstance(text, str)]
    return texts, None if texts else id_lists(several)


def id_lists(ids: Sequence[Any]) -> list[list[int]]:
    """Each text's token ids; those of a single text may come without a list around them."""
    lists = [item for item in ids if isinstance(item, list)]
    return lists or [[item for item in ids if isinstance(item, int)]]
