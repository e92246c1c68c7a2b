"""Inputs as both protocols allow them: a text, texts, token ids or lists of token ids."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import FailFast, Field, NonNegativeInt

MAX_NAME = 512  # characters of a model's or a prompt's name


class _FirstErrorOnly(FailFast):
    """Ends a list's validation at its first error: four million would take minutes."""

    __hash__ = object.__hash__  # a part of a union must have one


_FIRST_ERROR = _FirstErrorOnly()
Texts = Annotated[list[str], _FIRST_ERROR]
TokenIds = Annotated[list[NonNegativeInt], _FIRST_ERROR]
TokenIdLists = Annotated[list[TokenIds], _FIRST_ERROR]
Inputs = str | Texts | TokenIds | TokenIdLists
Name = Annotated[str, Field(max_length=MAX_NAME)]


def split_inputs(inputs: str | Sequence[Any]) -> tuple[list[str], list[list[int]] | None]:
    """(texts, None) for an input of texts; (no texts, token ids of each) for one of token ids."""
    several = [inputs] if isinstance(inputs, str) else inputs
    texts = [text for text in several if isinstance(text, str)]
    return texts, None if texts else id_lists(several)


def id_lists(ids: Sequence[Any]) -> list[list[int]]:
    """Each text's token ids; those of a single text may come without a list around them."""
    lists = [item for item in ids if isinstance(item, list)]
    return lists or [[item for item in ids if isinstance(item, int)]]
