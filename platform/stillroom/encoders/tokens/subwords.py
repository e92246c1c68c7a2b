"""Kinds of subword tokenizers: how each builds tokens from letters, and how to remove tokens.

A text is tokenised as before when all of its tokens are kept, with the tokens that they are merged
from: the longest match and the best path are still found, and merges happen in the same order.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from stillroom.errors import UserError

ModelJson = Mapping[str, Any]  # the field `model` of a tokenizer.json


class SubwordModel(Protocol):
    """The model of a tokenizer.

    Attributes:
        ids: token → id, without added tokens.
        alphabet: ids that are needed to spell any text.
    """

    ids: Mapping[str, int]
    alphabet: set[int]

    def merged_from(self, token: str) -> set[int]:
        """Ids of the tokens that a token is merged from, down to the letters."""

    def renumbered(self, new_ids: Mapping[str, int]) -> ModelJson:
        """The model with only the tokens that have a new id."""


class WordPiece:
    """Takes the longest token that a word starts with, then the longest continuations."""

    def __init__(self, model: ModelJson):
        self.model = model
        self.ids: Mapping[str, int] = model["vocab"]
        prefix = model["continuing_subword_prefix"]
        self.alphabet = {i for t, i in self.ids.items() if len(t.removeprefix(prefix)) == 1}
        self.alphabet.add(self.ids[model["unk_token"]])

    def merged_from(self, token: str) -> set[int]:
        """Nothing: tokens are not merged."""
        return set()

    def renumbered(self, new_ids: Mapping[str, int]) -> ModelJson:
        """The model with only these tokens."""
        return {**self.model, "vocab": _renumbered(self.ids, new_ids)}


class BytePair:
    """Merges letters, in the order of a list of merges."""

    def __init__(self, model: ModelJson):
        for field in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(field):
                raise UserError(
                    "student.vocabulary_size",
                    f"a tokenizer whose merges have a {field} cannot be narrowed",
                    "Leave it out, or use another base",
                )
        self.model = model
        self.ids: Mapping[str, int] = model["vocab"]
        self.rank = {(first, second): i for i, (first, second) in enumerate(model["merges"])}
        self.alphabet = _alphabet(self.ids, bytes_only=bool(model.get("byte_fallback")))
        if model.get("unk_token") is not None:
            self.alphabet.add(self.ids[model["unk_token"]])

    def merged_from(self, token: str) -> set[int]:
        """Ids of the letters and of all tokens on the way to this one."""
        return {self.ids[part] for part in self._intermediate(token) if part in self.ids}

    def _intermediate(self, token: str) -> Iterator[str]:
        """The letters of a token, and all that merges make of them on the way to it."""
        symbols = list(token)
        yield from symbols
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            at = min(range(len(pairs)), key=lambda i: self.rank.get(pairs[i], len(self.rank)))
            if pairs[at] not in self.rank:
                return
            symbols[at : at + 2] = ["".join(pairs[at])]
            yield symbols[at]

    def renumbered(self, new_ids: Mapping[str, int]) -> ModelJson:
        """The model with only these tokens, and the merges among them."""
        merges = [
            [first, second]
            for first, second in self.model["merges"]
            if first in new_ids and second in new_ids and first + second in new_ids
        ]
        return {**self.model, "vocab": _renumbered(self.ids, new_ids), "merges": merges}


class Unigram:
    """Takes the path of tokens with the highest sum of scores."""

    def __init__(self, model: ModelJson):
        self.model = model
        self.ids: Mapping[str, int] = {token: i for i, (token, _) in enumerate(model["vocab"])}
        self.alphabet = _alphabet(self.ids, bytes_only=bool(model.get("byte_fallback")))
        if model["unk_id"] is not None:
            self.alphabet.add(model["unk_id"])
        # The cost of an unknown letter is relative to the lowest score.
        scores = [score for _, score in model["vocab"]]
        self.alphabet.add(scores.index(min(scores)))

    def merged_from(self, token: str) -> set[int]:
        """Nothing: tokens are not merged."""
        return set()

    def renumbered(self, new_ids: Mapping[str, int]) -> ModelJson:
        """The model with only these tokens and their scores."""
        vocabulary = [(token, score) for token, score in self.model["vocab"] if token in new_ids]
        unknown = self.model["unk_id"]
        return {
            **self.model,
            "vocab": vocabulary,
            "unk_id": None if unknown is None else new_ids[self.model["vocab"][unknown][0]],
        }


SUBWORD_MODELS: dict[str, type[WordPiece] | type[BytePair] | type[Unigram]] = {
    "WordPiece": WordPiece,
    "BPE": BytePair,
    "Unigram": Unigram,
}


def _alphabet(ids: Mapping[str, int], *, bytes_only: bool) -> set[int]:
    """Ids of single letters or, where bytes can spell a letter that is missing, of the bytes."""
    if bytes_only:
        return {i for token, i in ids.items() if token.startswith("<0x") and len(token) == 6}
    return {i for token, i in ids.items() if len(token) == 1}


def _renumbered(ids: Mapping[str, int], new_ids: Mapping[str, int]) -> dict[str, int]:
    return {token: new_ids[token] for token in ids if token in new_ids}
