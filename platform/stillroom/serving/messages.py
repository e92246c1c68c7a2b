"""The one internal request: every HTTP schema becomes it, and every replica takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.encoders.contract import Overlong, Role
from stillroom.errors import UserError

RESTART_AFTER_S = 5  # what a client is told to wait for a replica to start


@dataclass(frozen=True)
class Load:
    """How busy an encoder is, as one router knows it."""

    ready: int = 1  # replicas that run
    lost: bool = False  # there were some, and now there are none
    ongoing: int = 0  # requests that they have, or that wait for them
    wait_s: float = 0.0  # until all of those are done, by the pace of late


class TooLarge(UserError):
    """A request over one of the operator's limits: another one may pass."""


@dataclass(frozen=True)
class Work:
    """One request's texts, or the token ids of each (without special tokens).

    Attributes:
        overlong: what becomes of a text of more tokens than the model takes.
        max_tokens: of all texts together, as they are encoded; more are refused (TooLarge).
        trace: W3C's headers of the trace that it belongs to, where there is one.
    """

    texts: list[str]
    token_ids: list[list[int]] | None  # in place of texts
    role: Role
    dims: int  # size of the vectors to return
    instruction: str | None = None
    overlong: Overlong = "cut"
    max_tokens: int | None = None
    trace: Mapping[str, str] | None = None


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


@dataclass(frozen=True)
class Ask:
    """What a client asks for, before it is decided who encodes it."""

    model: str
    texts: list[str]
    token_ids: list[list[int]] | None  # in place of texts
    role: Role
    dimensions: int | None = None  # None: the model's largest
    instruction: str | None = None
    overlong: Overlong = "cut"

    def __len__(self) -> int:
        return len(self.texts if self.token_ids is None else self.token_ids)

    def work(self, dims: int, max_tokens: int, trace: Mapping[str, str] | None = None) -> Work:
        return Work(
            self.texts,
            self.token_ids,
            self.role,
            dims,
            self.instruction,
            self.overlong,
            max_tokens,
            trace,
        )


@dataclass(frozen=True)
class Token:
    """A token of a text, and where it lies in it, in characters; nowhere for a special one."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def id_lists(inputs: Sequence[Any]) -> list[list[int]]:
    """The token ids of each text, where those of one text may come without a list around them."""
    several = [one for one in inputs if isinstance(one, list)]
    return several or [[one for one in inputs if isinstance(one, int)]]
