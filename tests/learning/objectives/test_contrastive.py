"""Contrastive objectives against plain loops that list each query's negatives."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens
from stillroom.learning.batch_types import PairBatch, TextBatch
from stillroom.learning.objectives.contrastive import Contrastive, Simcse
from stillroom.learning.objectives.token_prediction import loss_weights

B, HARD, DIMS, T = 5, 2, 12, 0.1
CPU = torch.device("cpu")


def unit_vectors(rng, n):
    vectors = torch.tensor(rng.normal(size=(n, DIMS)), dtype=torch.float32)
    return torch.nn.functional.normalize(vectors, dim=-1)


class FixedVectors:
    """A runner that returns prepared vectors in turn."""

    device = CPU

    def __init__(self, *vectors):
        self.remaining = list(vectors)

    def embed(self, texts):
        return self.remaining.pop(0)


@pytest.fixture
def batch():
    rng = np.random.default_rng(2)
    pairs = PairBatch(
        queries=[None] * B,
        passages=[None] * (B * (1 + HARD)),
        query_ids=torch.tensor([0, 1, 2, 3, 0]),  # 0 and 4 ask the same
        # Queries 1 and 2 share their positive; query 0's is among the hard negatives of query 3.
        passage_ids=torch.tensor([10, 11, 11, 13, 14, 20, 21, 22, 23, 24, 25, 10, 27, 28, 29]),
    )
    return pairs, unit_vectors(rng, B), unit_vectors(rng, B * (1 + HARD))


def loss_slowly(
    pairs, q, p, *, in_batch_negatives, query_to_query, passage_to_passage, margin, size
):
    """The loss on the first `size` dims, one query and one candidate at a time."""
    q, p = (torch.nn.functional.normalize(v[:, :size], dim=-1).tolist() for v in (q, p))
    ids, queries = pairs.passage_ids.tolist(), pairs.query_ids.tolist()

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for i in range(B):
        positive = dot(q[i], p[i])
        others = []
        for j in range(len(p)):
            is_own_negative = B + i * HARD <= j < B + (i + 1) * HARD
            if j != i and ids[j] != ids[i] and (in_batch_negatives or is_own_negative):
                others.append(dot(q[i], p[j]))
        if query_to_query:
            for j in range(B):
                if queries[j] != queries[i] and ids[j] != ids[i]:
                    others.append(dot(q[i], q[j]))
        if passage_to_passage:
            others += [dot(p[i], p[j]) for j in range(len(p)) if ids[j] != ids[i]]
        if margin is not None:
            others = [score for score in others if score <= positive + margin]
        powers = [math.exp(score / T) for score in (positive, *others)]
        total -= math.log(powers[0] / sum(powers)) / B
    return total


@pytest.mark.parametrize("in_batch_negatives", [True, False])
@pytest.mark.parametrize("query_to_query", [True, False])
@pytest.mark.parametrize("passage_to_passage", [True, False])
@pytest.mark.parametrize("margin", [None, 0.1])
def test_every_kind_of_negative_equals_a_plain_loop(
    batch, in_batch_negatives, query_to_query, passage_to_passage, margin
):
    pairs, q, p = batch
    options = {
        "in_batch_negatives": in_batch_negatives,
        "query_to_query": query_to_query,
        "passage_to_passage": passage_to_passage,
    }
    objective = Contrastive(temperature=T, false_negative_margin=margin, **options)
    loss, _ = objective(FixedVectors(q, p), pairs)
    expected = loss_slowly(pairs, q, p, margin=margin, size=DIMS, **options)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_in_a_symmetric_batch_other_queries_are_negatives(batch):
    pairs, q, p = batch
    with_query_to_query, _ = Contrastive(temperature=T, query_to_query=True)(
        FixedVectors(q, p), pairs
    )
    symmetric = dataclasses.replace(pairs, symmetric=True)
    loss, _ = Contrastive(temperature=T)(FixedVectors(q, p), symmetric)
    assert (
        float(loss)
        == float(with_query_to_query)
        != float(Contrastive(temperature=T)(FixedVectors(q, p), pairs)[0])
    )


def test_matryoshka_adds_the_losses_of_prefixes_of_unit_length(batch):
    pairs, q, p = batch
    objective = Contrastive(temperature=T, dims={DIMS: 1.0, 4: 0.5, 2: 0.25})
    loss, _ = objective(FixedVectors(q, p), pairs)
    options = {
        "in_batch_negatives": True,
        "query_to_query": False,
        "passage_to_passage": False,
        "margin": None,
    }
    expected = sum(
        weight * loss_slowly(pairs, q, p, size=size, **options)
        for size, weight in ((DIMS, 1.0), (4, 0.5), (2, 0.25))
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_in_simcse_a_text_is_its_own_positive_and_its_copies_are_not_negatives():
    rng = np.random.default_rng(0)
    first, second = unit_vectors(rng, 4), unit_vectors(rng, 4)
    loss, _ = Simcse(temperature=T)(
        FixedVectors(first, second), TextBatch([None] * 4, torch.tensor([7, 8, 9, 7]))
    )
    expected = 0.0
    for i in range(4):
        candidates = [j for j in range(4) if j == i or {i, j} != {0, 3}]
        powers = {j: math.exp(float(first[i] @ second[j]) / T) for j in candidates}
        expected -= math.log(powers[i] / sum(powers.values())) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_token_weights_make_a_mean_over_tokens_or_over_samples():
    clozes = [
        LabelledTokens([1, 2, 3], [5, IGNORE_INDEX, IGNORE_INDEX], "causal"),
        LabelledTokens([1, 2, 3, 4], [5, 6, 7, IGNORE_INDEX], "causal"),
    ]
    sums = torch.tensor([2.0, 9.0])  # of one and of three tokens
    by_token = (sums * loss_weights(clozes, "token", CPU)).sum()
    by_sample = (sums * loss_weights(clozes, "sample", CPU)).sum()
    assert float(by_token) == pytest.approx(11 / 4)
    assert float(by_sample) == pytest.approx((2 / 1 + 9 / 3) / 2)
