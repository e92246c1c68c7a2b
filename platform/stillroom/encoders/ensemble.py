"""Several encoders as one (Jasper and Stella, arXiv 2412.19048)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.encoders.contract import Combine, Combined, Overlong, Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.interface import ByTokens, prefix
from stillroom.encoders.tokens.prompter import Prompter, Tokens
from stillroom.errors import UserError


@dataclass(frozen=True)
class JointTokens(Tokens):
    """One text's ids of each member; `ids` are the most of them, which a forward's size goes by."""

    each: tuple[Tokens, ...] = ()


class JointPrompter:
    """What `Prompter` is to one encoder. Each member has its own tokenizer and prompts."""

    def __init__(self, members: Sequence[Prompter]):
        self.members = members

    def copy(self) -> "JointPrompter":
        """As `Prompter.copy`."""
        return JointPrompter([member.copy() for member in self.members])

    def __call__(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        max_tokens: int | None = None,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Ids of texts in a role; a prompt that is given is given to all."""
        told: dict[str, Any] = {"max_tokens": max_tokens, "prompt": prompt, "overlong": overlong}
        each = [prompter(texts, role, **told) for prompter in self.members]
        return [
            JointTokens(max((one.ids for one in own), key=len), each=own)
            for own in zip(*each, strict=True)
        ]

    def of_ids(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        *,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Raises UserError: ids are one tokenizer's."""
        raise UserError(
            "input", "are token ids, and this model has several tokenizers", "Send the texts"
        )


class CombinedEncoder(ByTokens):
    """Members' vectors, each of unit length, in a row or as their mean, of unit length again."""

    def __init__(self, contract: Combined, members: Sequence[Encoder]):
        self.contract, self.members = contract, list(members)
        self.prompter = JointPrompter([member.prompter for member in self.members])

    @property
    def packed(self) -> bool:
        return all(member.packed for member in self.members)

    @property
    def concurrent(self) -> bool:
        return all(member.concurrent for member in self.members)

    @property
    def parameters_total(self) -> int:
        return sum(member.parameters_total for member in self.members)

    def to(self, device: str) -> "CombinedEncoder":
        for member in self.members:
            member.to(device)
        return self

    def encode_tokens(
        self, tokens: Sequence[Any], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `Encoder.encode_tokens`, of this encoder's own prompter's."""
        size = self.contract.size(dims)
        if not tokens:
            return np.empty((0, size), dtype=np.float32)
        vectors = [
            member.encode_tokens([one.each[place] for one in tokens], batch_tokens=batch_tokens)
            for place, member in enumerate(self.members)
        ]
        found = COMBINE[self.contract.combine]([prefix(own, own.shape[1], True) for own in vectors])
        return prefix(found, size, True)


COMBINE = {
    "concatenate": lambda vectors: np.concatenate(vectors, axis=1),
    "average": lambda vectors: np.mean(vectors, axis=0),
}


def combination(members: Sequence[Encoder], combine: Combine, *, space: str) -> Combined:
    """The contract of members that lie in the folders members/0, members/1 and so on.

    Raises:
        UserError: when members to be averaged have vectors of different sizes.
    """
    sizes = [member.contract.dims for member in members]
    if combine == "concatenate":
        # A prefix would be the first member's alone.
        dims: tuple[int, ...] = (sum(own[0] for own in sizes),)
    else:
        if len({own[0] for own in sizes}) > 1:
            raise UserError(
                "teacher.combine: average",
                f"the members' vectors have {', '.join(str(own[0]) for own in sizes)} dims",
                "Set combine: concatenate, or name members of one size",
            )
        dims = tuple(size for size in sizes[0] if all(size in own for own in sizes))
    return Combined(
        # What all of them read; each cuts a text by itself.
        max_tokens=min(member.contract.max_tokens for member in members),
        dims=dims,
        space=space,
        combine=combine,
        members=tuple(f"members/{number}" for number in range(len(members))),
    )
