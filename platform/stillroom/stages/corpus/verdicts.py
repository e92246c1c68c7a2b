"""Whether a row of a corpus is kept, or why it is dropped."""

from enum import IntEnum


class Verdict(IntEnum):
    """Of a row, which is a pair, a negative, a passage or a conversation."""

    KEPT = 0
    QUERY_IS_PASSAGE = 1
    REPEATED_PASSAGES = 2
    REPEATED_QUERIES = 3
    NEAR_COPIES = 4
    HELD_OUT = 5
    CONTAMINATED = 6
    BEYOND_MAX_PAIRS = 7
    POSITIVE = 8  # a negative that is its own pair's positive
    CONFLICTS = 9  # a negative that is the positive of the same query in another pair
    REPEATED = 10
    TESTED = 11  # part of an evaluation set
    OF_DROPPED_PAIRS = 12


# Reasons to drop rows of each kind, in the order of counts.json.
DROP_REASONS: dict[str, tuple[Verdict, ...]] = {
    "pairs": tuple(v for v in Verdict if 0 < v <= Verdict.BEYOND_MAX_PAIRS),
    "negatives": (
        Verdict.OF_DROPPED_PAIRS, Verdict.POSITIVE, Verdict.CONFLICTS, Verdict.REPEATED,
        Verdict.TESTED,
    ),
    "passages": (Verdict.TESTED, Verdict.REPEATED, Verdict.NEAR_COPIES),
    "conversations": (Verdict.TESTED, Verdict.REPEATED),
}  # fmt: skip
