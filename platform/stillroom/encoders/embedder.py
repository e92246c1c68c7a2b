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
        batch_tokens: int = 8192,
        dims: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray: ...
