"""What all that turns texts into vectors has in common."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stillroom.encoders.contract import Role, Terms


class Embedder(Protocol):
    """An `Encoder`, several as one, or an API."""

    @property
    def contract(self) -> Terms: ...

    @property
    def parameters_total(self) -> int: ...

    def to(self, device: Any) -> Any: ...

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int | None = None,
        dims: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray: ...


class ByTokens:
    """Encodes texts by way of their ids."""

    prompter: Any  # texts → what `encode_tokens` takes

    @property
    def packed(self) -> bool:
        """Whether its forwards have no padding, so that texts of any length share one for free."""
        return False

    @property
    def concurrent(self) -> bool:
        """Whether several threads may encode at once."""
        return False

    def encode_tokens(
        self, tokens: Sequence[Any], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `encode`, of ids that were made elsewhere."""
        raise NotImplementedError

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int | None = None,
        dims: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32, (n, dims).

        Args:
            batch_tokens: the most tokens of one forward, padding counted where there is any; None:
                what is fastest where it runs.
            dims: one of the contract's sizes; a prefix is brought to unit length again.
            prompt: in place of the contract's own.

        Raises:
            UserError: when dims is not one of the contract's.
        """
        tokens = self.prompter(texts, role, prompt=prompt)
        return self.encode_tokens(tokens, batch_tokens=batch_tokens, dims=dims)


def prefix(vectors: np.ndarray, dims: int, normalise: bool) -> np.ndarray:
    """The first `dims` of each vector (Matryoshka, arXiv 2205.13147), of unit length again."""
    cut = vectors[:, :dims]
    if not normalise:
        return cut
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
