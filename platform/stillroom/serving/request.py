"""The one internal request: every HTTP schema becomes it, and every replica takes it."""

from dataclasses import dataclass

import numpy as np

from stillroom.encoders.contract import Role


@dataclass(frozen=True)
class Work:
    """One request's texts, or the token ids of each (without special tokens)."""

    texts: list[str]
    token_ids: list[list[int]] | None  # in place of texts
    role: Role
    dims: int  # size of the vectors to return
    instruction: str | None = None


@dataclass(frozen=True)
class Encoded:
    """float32 vectors [n, dims] in the order of the inputs, and the tokens they cost.

    Attributes:
        space, release: of the encoder that made them. While an update rolls, that may be another
            than the router knows under the encoder's name.
    """

    vectors: np.ndarray
    tokens: int
    space: str = ""
    release: str = ""
