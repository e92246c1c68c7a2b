"""Messages between HTTP, the service and the replicas: a request, a job, its result.

Also the small types that more than one layer needs: an encoder's load, and a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stillroom.encoders.contract import Overlong, Role


@dataclass(frozen=True)
class EmbedRequest:
    """A client's request; every HTTP schema is converted to it.

    Attributes:
        model: a name that GET /v1/models lists.
        token_ids: of each text, without special tokens; None where texts were sent.
        dimensions: size of the vectors; None: the model's largest.
        instruction: the task of a query, which replaces its prompt.
        overlong: what happens to a text with more tokens than the model takes.
        prompt_name: of a prompt of the model, which replaces the role's.
    """

    model: str
    texts: list[str]
    token_ids: list[list[int]] | None
    role: Role
    dimensions: int | None = None
    instruction: str | None = None
    overlong: Overlong = "cut"
    prompt_name: str | None = None

    def __len__(self) -> int:
        """The number of vectors to return."""
        return len(self.texts if self.token_ids is None else self.token_ids)


@dataclass(frozen=True)
class EncodeJob:
    """A request for a replica, after the router has decided what to send.

    Attributes:
        dims: size of the vectors to return.
        max_tokens: of all texts together, as encoded; the replica refuses more (TooManyTokens).
        trace: W3C headers of the trace that the job belongs to, where there is one.
    """

    request: EmbedRequest
    dims: int
    max_tokens: int | None = None
    trace: Mapping[str, str] | None = None


@dataclass(frozen=True)
class EncodeResult:
    """float32 vectors [n, dims] in the order of the inputs, the encoder that made them, and their
    cost.

    Attributes:
        tokenise_s, wait_s, encode_s: where the request's time went in the replica, in seconds. For
            a request in several forwards, their sum; the rest is wait.
        padded_tokens: this request's share of its forwards' (texts × longest text). The difference
            from `tokens` is the cost of padding.
        batch_texts: texts in a forward that had some of this request's, on average.
        unknown_tokens: tokens that stand for what the tokenizer does not know; None: not counted.
        space, release: of the encoder that made them. During a rolling update, these may differ
            from what the router knows under the encoder's name.
        model: the encoder, as the router names it.
    """

    vectors: np.ndarray
    tokens: int
    tokenise_s: float | None = None
    wait_s: float | None = None
    encode_s: float | None = None
    padded_tokens: int | None = None
    batch_texts: float | None = None
    unknown_tokens: int | None = None
    space: str = ""
    release: str = ""
    model: str = ""


@dataclass(frozen=True)
class EncoderLoad:
    """How busy an encoder is, as one router knows it.

    Attributes:
        ready: running replicas.
        lost: there were replicas, and now there are none.
        ongoing: requests that the replicas have, or that wait for them.
        wait_s: until all of those are done, at the recent pace.
    """

    ready: int = 1
    lost: bool = False
    ongoing: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True)
class Token:
    """A token of a text, and its place in it in characters; None for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None
