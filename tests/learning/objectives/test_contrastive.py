"""Contrastive objectives against loops that spell out who is whose negative."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stillroom.encoders.tokens.prompter import NO_TARGET, Cloze
from stillroom.learning.batch_types import Pairs, Texts
from stillroom.learning.objectives.contrastive import Contrastive, Simcse
from stillroom.learning.objectives.token_prediction import token_weights

B, HARD, DIMS, T = 5, 2, 12, 0.1
CPU = torch.device("cpu")


def unit(rng, n):
    vectors = torch.tensor(rng.normal(size=(n, DIMS)), dtype=torch.float32)
    return torch.nn.functional.normalize(vectors, dim=-1)


class Given:
    """Stands where the model would: gives out vectors that were made beforehand."""

    device = CPU

    def __init__(self, *vectors):
        self.left = list(vectors)

    def vectors(self, tokens):
        return self.left.pop(0)


@pytest.fixture
def batch():
    rng = np.random.default_rng(2)
    pairs = Pairs(
        queries=[None] * B,
        passages=[None] * (B * (1 + HARD)),
        query_ids=torch.tensor([0, 1, 2, 3, 0]),  # 0 and 4 ask the same
        # Queries 1 and 2 share their positive; query 0's is among the hard negatives of query 3.
        passage_ids=torch.tensor([10, 11, 11, 13, 14, 20, 21, 22, 23, 24, 25, 10, 27, 28, 29]),
    )
    return pairs, unit(rng, B), unit(rng, B * (1 + HARD))


def spelled_out(pairs, q, p, *, in_batch, query_query, passage_passage, margin, size):
    """The loss on the first `size` dims, one query and one candidate after the other."""
    q, p = (torch.nn.functional.normalize(v[:, :size], dim=-1).tolist() for v in (q, p))
    ids, queries = pairs.passage_ids.tolist(), pairs.query_ids.tolist()

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for i in range(B):
        positive = dot(q[i], p[i])
        others = []
        for j in range(len(p)):
            own_hard = B + i * HARD <= j < B + (i + 1) * HARD
            if j != i and ids[j] != ids[i] and (in_batch or own_hard):
                others.append(dot(q[i], p[j]))
        if query_query:
            for j in range(B):
                if queries[j] != queries[i] and ids[j] != ids[i]:
                    others.append(dot(q[i], q[j]))
        if passage_passage:
            others += [dot(p[i], p[j]) for j in range(len(p)) if ids[j] != ids[i]]
        if margin is not None:
            others = [score for score in others if score <= positive + margin]
        powers = [math.exp(score / T) for score in (positive, *others)]
        total -= math.log(powers[0] / sum(powers)) / B
    return total


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("query_query", [True, False])
@pytest.mark.parametrize("passage_passage", [True, False])
@pytest.mark.parametrize("margin", [None, 0.1])
def test_every_kind_of_negative_is_the_one_spelled_out(
    batch, in_batch, query_query, passage_passage, margin
):
    pairs, q, p = batch
    how = {"in_batch": in_batch, "query_query": query_query, "passage_passage": passage_passage}
    objective = Contrastive(temperature=T, false_negative_margin=margin, **how)
    loss, _ = objective(Given(q, p), pairs)
    slow = spelled_out(pairs, q, p, margin=margin, size=DIMS, **how)
    assert float(loss) == pytest.approx(slow, rel=1e-5)


def test_in_a_symmetric_batch_other_queries_are_negatives(batch):
    pairs, q, p = batch
    asked, _ = Contrastive(temperature=T, query_query=True)(Given(q, p), pairs)
    symmetric = dataclasses.replace(pairs, symmetric=True)
    loss, _ = Contrastive(temperature=T)(Given(q, p), symmetric)
    assert float(loss) == float(asked) != float(Contrastive(temperature=T)(Given(q, p), pairs)[0])


def test_matryoshka_adds_the_losses_of_prefixes_of_unit_length(batch):
    pairs, q, p = batch
    objective = Contrastive(temperature=T, dims={DIMS: 1.0, 4: 0.5, 2: 0.25})
    loss, _ = objective(Given(q, p), pairs)
    how = {"in_batch": True, "query_query": False, "passage_passage": False, "margin": None}
    slow = sum(
        weight * spelled_out(pairs, q, p, size=size, **how)
        for size, weight in ((DIMS, 1.0), (4, 0.5), (2, 0.25))
    )
    assert float(loss) == pytest.approx(slow, rel=1e-5)


def test_a_text_under_two_dropouts_is_its_own_positive_and_copies_are_no_negatives():
    rng = np.random.default_rng(0)
    first, second = unit(rng, 4), unit(rng, 4)
    loss, _ = Simcse(temperature=T)(
        Given(first, second), Texts([None] * 4, torch.tensor([7, 8, 9, 7]))
    )
    slow = 0.0
    for i in range(4):
        kept = [j for j in range(4) if j == i or {i, j} != {0, 3}]
        powers = {j: math.exp(float(first[i] @ second[j]) / T) for j in kept}
        slow -= math.log(powers[i] / sum(powers.values())) / 4
    assert float(loss) == pytest.approx(slow, rel=1e-5)


def test_token_weights_make_a_mean_over_tokens_or_over_samples():
    clozes = [
        Cloze([1, 2, 3], [5, NO_TARGET, NO_TARGET], "causal"),
        Cloze([1, 2, 3, 4], [5, 6, 7, NO_TARGET], "causal"),
    ]
    sums = torch.tensor([2.0, 9.0])  # of one and of three tokens
    by_token = (sums * token_weights(clozes, "token", CPU)).sum()
    by_sample = (sums * token_weights(clozes, "sample", CPU)).sum()
    assert float(by_token) == pytest.approx(11 / 4)
    assert float(by_sample) == pytest.approx((2 / 1 + 9 / 3) / 2)
