"""Several encoders as one (Jasper and Stella, arXiv 2412.19048)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.encoders.contract import (
    CombineMethod,
    Comparison,
    EnsembleContract,
    Overlong,
    Role,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.interface import TokenEncoder, truncate_vectors
from stillroom.encoders.library_encoder import LibraryEncoder, LibraryPrompter
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.tokens.prompter import Prompter
from stillroom.encoders.usable_vectors import require_usable
from stillroom.errors import UserError


@dataclass(frozen=True)
class EnsembleTokens(Tokens):
    """One text's tokens for each member; `ids` are the longest of them, for sizing batches."""

    by_member: tuple[Tokens, ...] = ()


class EnsemblePrompter:
    """`Prompter` for an ensemble, whose members have their own tokenizers and prompts."""

    def __init__(self, members: Sequence[Prompter | LibraryPrompter]):
        self.members = members

    def copy(self) -> "EnsemblePrompter":
        """As `Prompter.copy`."""
        return EnsemblePrompter([member.copy() for member in self.members])

    def __call__(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        max_tokens: int | None = None,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """As `Prompter.__call__`; all members get the same prompt, if one is given."""
        by_member = [
            prompter(texts, role, max_tokens=max_tokens, prompt=prompt, overlong=overlong)
            for prompter in self.members
        ]
        return [
            EnsembleTokens(max((tokens.ids for tokens in text), key=len), by_member=text)
            for text in zip(*by_member, strict=True)
        ]

    def from_ids(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        *,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Raises UserError: token ids belong to one tokenizer."""
        raise UserError(
            "input", "are token ids, and this model has several tokenizers", "Send the texts"
        )


class EnsembleEncoder(TokenEncoder):
    """The concatenation or mean of its members' unit vectors, of unit length again."""

    def __init__(self, contract: EnsembleContract, members: Sequence[Encoder | LibraryEncoder]):
        self.contract, self.members = contract, list(members)
        self.prompter = EnsemblePrompter([member.prompter for member in self.members])

    @property
    def packed(self) -> bool:
        """Whether all members run without padding."""
        return all(member.packed for member in self.members)

    @property
    def thread_safe(self) -> bool:
        """Whether all members are thread-safe."""
        return all(member.thread_safe for member in self.members)

    @property
    def parameters_total(self) -> int:
        """Number of weights of all members."""
        return sum(member.parameters_total for member in self.members)

    def broken_weight(self) -> str | None:
        """As `TokenEncoder.broken_weight`, with the member's number."""
        weights = ((number, member.broken_weight()) for number, member in enumerate(self.members))
        return next((f"members.{n}.{weight}" for n, weight in weights if weight is not None), None)

    def to(self, device: str) -> "EnsembleEncoder":
        """Moves all members to a device."""
        for member in self.members:
            member.to(device)
        return self

    def encode_batch(self, tokens: Sequence[Any]) -> np.ndarray:
        """As `Encoder.encode_batch`, for tokens from this encoder's prompter."""
        vectors = [
            member.encode_batch([text.by_member[number] for text in tokens])
            for number, member in enumerate(self.members)
        ]
        return truncate_vectors(self._combine(vectors), self.contract.dims[0], True)

    def encode_tokens(
        self, tokens: Sequence[Any], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `Encoder.encode_tokens`, for tokens from this encoder's prompter."""
        size = self.contract.resolve_dims(dims)
        if not tokens:
            return np.empty((0, size), dtype=np.float32)
        vectors = [
            member.encode_tokens(
                [text.by_member[number] for text in tokens], batch_tokens=batch_tokens
            )
            for number, member in enumerate(self.members)
        ]
        combined = truncate_vectors(self._combine(vectors), size, True)
        require_usable(combined, normalised=True)  # members may point in opposite directions
        return combined

    def _combine(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        unit_vectors = [truncate_vectors(rows, rows.shape[1], True) for rows in vectors]
        return np.asarray(COMBINE_METHODS[self.contract.combine](unit_vectors))


COMBINE_METHODS = {
    "concatenate": lambda vectors: np.concatenate(vectors, axis=1),
    "average": lambda vectors: np.mean(vectors, axis=0),
}


def require_unit_vectors(number: int, base: str, comparison: Comparison) -> None:
    """Refuses a member whose scores depend on the lengths of its vectors.

    Raises:
        UserError: when its vectors are not of unit length.
    """
    if not comparison.normalise:
        raise UserError(
            f"teacher.members.{number}",
            f"{base} is compared by dot, so its scores depend on the lengths of its vectors, and "
            "members are combined by unit vectors",
            "Set its similarity: cosine if directions are enough, or use it alone",
        )


def ensemble_contract(
    members: Sequence[Encoder | LibraryEncoder], method: CombineMethod, *, space: str
) -> EnsembleContract:
    """The contract of an ensemble whose members are in the folders members/0, members/1 and so on.

    Raises:
        UserError: when vectors of different sizes are to be averaged, or when a member's scores
            depend on lengths of vectors, which the combination does not keep.
    """
    for number, member in enumerate(members):
        require_unit_vectors(number, member.contract.base, member.contract.comparison)
    sizes = [member.contract.dims for member in members]
    if method == "concatenate":
        # Only one size: a prefix would omit the later members.
        dims: tuple[int, ...] = (sum(full for full, *_ in sizes),)
    else:
        if len({full for full, *_ in sizes}) > 1:
            raise UserError(
                "teacher.combine: average",
                f"the members' vectors have {', '.join(str(full) for full, *_ in sizes)} dims",
                "Set combine: concatenate, or name members of one size",
            )
        dims = tuple(size for size in sizes[0] if all(size in member for member in sizes))
    return EnsembleContract(
        # What all members read; each cuts a text by itself.
        max_tokens=min(member.contract.max_tokens for member in members),
        dims=dims,
        space=space,
        combine=method,
        members=tuple(f"members/{number}" for number in range(len(members))),
    )
