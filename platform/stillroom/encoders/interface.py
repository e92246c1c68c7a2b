"""The interface of all encoders, and the common base of those that tokenise first."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stillroom.encoders.contract import BaseContract, Role
from stillroom.encoders.usable_vectors import (
    NOT_FINITE,
    PLAIN_TEXT,
    UnusableVectorError,
    broken_model_error,
    broken_weight_error,
)


class Embedder(Protocol):
    """Turns texts into vectors: a single model, an ensemble, an export or an API."""

    @property
    def contract(self) -> BaseContract: ...

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


class TokenEncoder:
    """Base of the encoders that turn texts into token ids first.

    Attributes:
        contract: a `BaseContract`; each kind of encoder has its own.
        prompter: texts → the tokens that `encode_tokens` takes.
    """

    contract: Any
    prompter: Any

    @property
    def packed(self) -> bool:
        """Whether forwards run without padding, so that texts of any length share one for free."""
        return False

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may encode at once."""
        return False

    def encode_batch(self, tokens: Sequence[Any]) -> np.ndarray:
        """Vectors of texts in one forward, in their order: float32 (n, dims[0]).

        For callers that have sorted and split the texts already, as serving has. They check the
        vectors themselves (`require_usable`): the texts may be of several requests.
        """
        raise NotImplementedError

    def encode_tokens(
        self, tokens: Sequence[Any], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `encode`, for texts that are token ids already."""
        raise NotImplementedError

    def broken_weight(self) -> str | None:
        """The name of a weight that is not finite; None where there is none, or none is known."""
        return None

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int | None = None,
        dims: int | None = None,
        prompt: str | None = None,
        tokens: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32 (n, dims).

        Args:
            batch_tokens: the most tokens of one forward, padding included; None: the fastest number
                on the device.
            dims: one of the contract's sizes; shorter vectors are of unit length again.
            prompt: replaces the contract's prompt.
            tokens: what the prompter makes of the texts, where the caller has it already.

        Raises:
            UnusableVectorError: for a text whose vector is not finite or has no length.
            BrokenModelError: when the weights are at fault.
            UserError: when dims is not one of the contract's.
        """
        if tokens is None:
            tokens = self.prompter(texts, role, prompt=prompt)
        try:
            return self.encode_tokens(tokens, batch_tokens=batch_tokens, dims=dims)
        except UnusableVectorError as error:
            self._require_whole_model()
            raise error.of_text(error.row, error.problem, texts[error.row]) from None

    def _require_whole_model(self) -> None:
        """Raises BrokenModelError when the weights, not a text, are at fault."""
        if (weight := self.broken_weight()) is not None:
            raise broken_weight_error(f"model: {weight}")
        try:
            self.encode_tokens(self.prompter([PLAIN_TEXT], "query"))
        except UnusableVectorError as error:
            if error.problem == NOT_FINITE:
                raise broken_model_error("model") from None


def truncate_vectors(vectors: np.ndarray, dims: int, normalise: bool) -> np.ndarray:
    """The first `dims` of each vector (Matryoshka, arXiv 2205.13147), optionally of unit length."""
    truncated = vectors[:, :dims]
    if not normalise:
        return truncated
    return truncated / np.maximum(np.linalg.norm(truncated, axis=1, keepdims=True), 1e-12)
