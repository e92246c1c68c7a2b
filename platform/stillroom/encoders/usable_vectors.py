"""No vector that is not finite, and none of length zero, leaves an encoder.

Such a vector has no neighbours: its cosines are NaN or 0, and a ranking by them means nothing.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from stillroom.errors import UserError, quote

# Of a vector that should be of unit length: shorter ones were too short to be normalised.
SHORTEST_UNIT_VECTOR = 0.5

NOT_FINITE, NO_LENGTH = "its vector is not finite", "its vector has length zero"
PLAIN_TEXT = "A short text."  # a model without a finite vector of it has none of any text


class UnusableVectorError(UserError):
    """The model encodes other texts, but not this one.

    Attributes:
        row: of the text in the call.
        problem: the fault of its vector.
    """

    row = 0

    @classmethod
    def of_text(cls, row: int, problem: str, text: str | None = None) -> Self:
        """The error for the text in a row; None for a text that only its caller knows."""
        shown = "" if text is None else f" {quote(text)}"
        error = cls(
            f"text {row + 1}{shown}", problem, "Change or leave out that text, or use another model"
        )
        error.row = row
        return error


class BrokenModelError(UserError):
    """The model's weights are at fault, so that no vector of it can be trusted."""


def require_usable(
    vectors_nd: np.ndarray,
    *,
    normalised: bool,
    rows: np.ndarray | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Checks vectors of any precision before anybody uses them.

    Args:
        vectors_nd: (n, d).
        normalised: whether they should be of unit length.
        rows: of the vectors among the caller's texts; None: 0 to n - 1.
        texts: the caller's, to name one.

    Raises:
        UnusableVectorError: at the first vector that is not finite or has no length.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths_n = np.linalg.norm(np.asarray(vectors_nd, dtype=np.float32), axis=1)
    shortest = SHORTEST_UNIT_VECTOR if normalised else np.finfo(np.float32).tiny
    # NaN is neither: comparisons with it are false.
    usable_n = (lengths_n >= shortest) & (lengths_n < np.inf)
    if usable_n.all():
        return
    first = int(np.argmin(usable_n))
    row = first if rows is None else int(rows[first])
    problem = NO_LENGTH if lengths_n[first] < shortest else NOT_FINITE
    raise UnusableVectorError.of_text(row, problem, None if texts is None else texts[row])


def broken_weight_error(where: str) -> BrokenModelError:
    """The error for a weight that holds NaN or an infinite number.

    Args:
        where: its name, after the file or the release that it is in.
    """
    return BrokenModelError(
        where,
        "holds numbers that are not finite, so the model's vectors mean nothing",
        "Restore the model's files, or train it again",
    )


def broken_model_error(where: str) -> BrokenModelError:
    """The error for a model that gives no finite vector, and whose weights cannot be read."""
    return BrokenModelError(
        where,
        f"gives vectors that are not finite, even of {PLAIN_TEXT!r}",
        "Restore the model's files, or export it again",
    )
