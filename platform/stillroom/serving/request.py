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
        tokenise_s, wait_s, encode_s: where the request's time went in the replica, in seconds; of
            a request in several forwards, their sum, and the rest is wait.
        padded_tokens: this request's share of its forwards' (texts × longest text); less
            `tokens`, it is what padding cost.
        batch_texts: texts in a forward that had some of this request's, on average.
        space, release: of the encoder that made them. While an update rolls, that may be another
            than the router knows under the encoder's name.
    """

    vectors: np.ndarray
    tokens: int
    tokenise_s: float | None = None
    wait_s: float | None = None
    encode_s: float | None = None
    padded_tokens: int | None = None
    batch_texts: float | None = None
    space: str = ""
    release: str = ""
