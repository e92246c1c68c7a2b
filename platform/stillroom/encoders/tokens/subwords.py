"""How each kind of tokenizer makes tokens of letters, and what it is without some of its tokens.

A token's parts are the tokens that must be there for it to come about. Texts made of tokens whose
parts are all there are cut as they were: the longest match and the best path are still there to be
found, and merges still happen in their order.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from stillroom.errors import UserError

Model = Mapping[str, Any]  # of a tokenizer.json


class Spelling(Protocol):
    """A tokenizer's model.

    Attributes:
        ids: token → id, without what was added to the model's own.
        alphabet: ids without which there is a text that could no longer be spelled.
    """

    ids: Mapping[str, int]
    alphabet: set[int]

    def parts(self, token: str) -> set[int]:
        """Ids of what a token is merged from, down to the letters."""

    def rewritten(self, new: Mapping[str, int]) -> Model:
        """The model of the tokens that have a new id."""


class WordPiece:
    """The longest token first, then the longest continuation."""

    def __init__(self, model: Model):
        self.model = model
        self.ids: Mapping[str, int] = model["vocab"]
        prefix = model["continuing_subword_prefix"]
        self.alphabet = {i for t, i in self.ids.items() if len(t.removeprefix(prefix)) == 1}
        self.alphabet.add(self.ids[model["unk_token"]])

    def parts(self, token: str) -> set[int]:
        return set()

    def rewritten(self, new: Mapping[str, int]) -> Model:
        return {**self.model, "vocab": _renumbered(self.ids, new)}


class BytePair:
    """Letters, merged in the order of the list of merges."""

    def __init__(self, model: Model):
        for field in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(field):
                raise UserError(
                    "student.vocabulary",
                    f"a tokenizer whose merges have a {field} cannot be narrowed",
                    "Leave vocabulary out, or use another base",
                )
        self.model = model
        self.ids: Mapping[str, int] = model["vocab"]
        self.rank = {(first, second): i for i, (first, second) in enumerate(model["merges"])}
        self.alphabet = _alphabet(self.ids, bytes_alone=bool(model.get("byte_fallback")))
        if model.get("unk_token") is not None:
            self.alphabet.add(self.ids[model["unk_token"]])

    def parts(self, token: str) -> set[int]:
        return {self.ids[part] for part in self._merged(token) if part in self.ids}

    def _merged(self, token: str) -> Iterator[str]:
        """Everything that comes about on the way from letters to the token."""
        symbols = list(token)
        yield from symbols
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            at = min(range(len(pairs)), key=lambda i: self.rank.get(pairs[i], len(self.rank)))
            if pairs[at] not in self.rank:
                return
            symbols[at : at + 2] = ["".join(pairs[at])]
            yield symbols[at]

    def rewritten(self, new: Mapping[str, int]) -> Model:
        merges = [
            [first, second]
            for first, second in self.model["merges"]
            if first in new and second in new and first + second in new
        ]
        return {**self.model, "vocab": _renumbered(self.ids, new), "merges": merges}


class Unigram:
    """The path of tokens with the highest sum of scores."""

    def __init__(self, model: Model):
        self.model = model
        self.ids: Mapping[str, int] = {token: i for i, (token, _) in enumerate(model["vocab"])}
        self.alphabet = _alphabet(self.ids, bytes_alone=bool(model.get("byte_fallback")))
        if model["unk_id"] is not None:
            self.alphabet.add(model["unk_id"])
        # What an unknown letter costs is counted from the lowest score.
        scores = [score for _, score in model["vocab"]]
        self.alphabet.add(scores.index(min(scores)))

    def parts(self, token: str) -> set[int]:
        return set()

    def rewritten(self, new: Mapping[str, int]) -> Model:
        kept = [(token, score) for token, score in self.model["vocab"] if token in new]
        unknown = self.model["unk_id"]
        return {
            **self.model,
            "vocab": kept,
            "unk_id": None if unknown is None else new[self.model["vocab"][unknown][0]],
        }


KINDS: dict[str, type[WordPiece] | type[BytePair] | type[Unigram]] = {
    "WordPiece": WordPiece,
    "BPE": BytePair,
    "Unigram": Unigram,
}


def _alphabet(ids: Mapping[str, int], *, bytes_alone: bool) -> set[int]:
    """Single letters; where bytes stand in for a letter that is not there, these are enough."""
    if bytes_alone:
        return {i for token, i in ids.items() if token.startswith("<0x") and len(token) == 6}
    return {i for token, i in ids.items() if len(token) == 1}


def _renumbered(ids: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {token: new[token] for token in ids if token in new}
