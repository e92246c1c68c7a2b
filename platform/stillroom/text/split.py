"""A test set split off the pairs, so that nothing in it was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import UserError
from stillroom.text.dedupe import near_key
from stillroom.text.formats import EvaluationSet, Pair


@dataclass(frozen=True)
class Split:
    train: list[Pair]
    evaluation: EvaluationSet


def split(
    pairs: Sequence[Pair],
    *,
    seed: int,
    held_out_queries: int,
    held_out_passages: int,
) -> Split:
    """Holds out passages, and asks for some of them; the pairs left stay in order.

    Near-copies of a passage never stand on both sides, and the test set keeps one of each, so
    that every query has exactly one right answer.

    Args:
        held_out_passages: how many are searched, the queries' answers among them.

    Raises:
        UserError: when that leaves nothing to train on.
    """
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(near_key(pair.passage), []).append(i)
    members = list(groups.values())
    if len(members) <= held_out_passages:
        raise UserError(
            "corpus.held_out.passages",
            f"{held_out_passages} are asked for, and of {len(pairs)} pairs {len(members)} have "
            "distinct passages, which leaves none to train on",
            "Hold out fewer, or give more pairs",
        )
    order = np.random.default_rng(seed).permutation(len(members))
    tested = [pairs[members[g][0]] for g in order[:held_out_passages]]
    rest = sorted(i for g in order[held_out_passages:] for i in members[g])
    width = len(str(held_out_passages))
    ids = [f"p{number:0{width}d}" for number in range(held_out_passages)]
    asked = range(held_out_queries)
    evaluation = EvaluationSet(
        passages={own_id: pair.passage for own_id, pair in zip(ids, tested, strict=True)},
        queries={f"q{i:0{width}d}": tested[i].query for i in asked},
        qrels={f"q{i:0{width}d}": {ids[i]: 1} for i in asked},
    )
    return Split([pairs[i] for i in rest], evaluation)
