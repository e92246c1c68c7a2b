"""Objectives of models that dot compares: scores are inner products of raw vectors, and a
Matryoshka cut is a plain prefix. All against loops over single numbers."""

import math

import numpy as np
import pytest
import torch

from stillroom.learning.batch_types import PairBatch, TextBatch
from stillroom.learning.objectives.contrastive import Contrastive, Simcse
from stillroom.learning.objectives.distillation import Distillation

B, DIMS, PREFIX = 4, 10, 3
NORMS = 2.0  # of single numbers: scores are some tens


class FixedVectors:
    """A runner that returns prepared vectors in turn."""

    device = torch.device("cpu")

    def __init__(self, *vectors):
        self.remaining = list(vectors)

    def embed(self, texts):
        return self.remaining.pop(0)


def raw_vectors(seed, n=B):
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(0.2, 2.0, size=(n, 1))  # each text has another length
    return torch.tensor(lengths * rng.normal(scale=NORMS, size=(n, DIMS)), dtype=torch.float32)


def unit_vectors(seed, n=B):
    return torch.nn.functional.normalize(raw_vectors(seed, n), dim=-1)


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def log_softmax(scores):
    largest = max(scores)
    total = math.log(sum(math.exp(score - largest) for score in scores)) + largest
    return [score - total for score in scores]


def kl(student, teacher):
    return sum(
        math.exp(t) * (t - s)
        for s, t in zip(log_softmax(student), log_softmax(teacher), strict=True)
    )


def prefix(vectors, size, unit):
    cut = [vector[:size].tolist() for vector in vectors]
    if not unit:
        return cut
    return [[x / math.sqrt(dot(vector, vector)) for x in vector] for vector in cut]


PAIRS = PairBatch([None] * B, [None] * B, torch.arange(B), torch.tensor([5, 6, 7, 8]))


@pytest.mark.parametrize("size", [DIMS, PREFIX])
def test_contrastive_scores_are_raw_inner_products_of_plain_prefixes(size):
    q, p = raw_vectors(1), raw_vectors(2)
    loss, _ = Contrastive(temperature=None, dims={size: 1.0}, normalise=False)(
        FixedVectors(q, p), PAIRS
    )
    q_cut, p_cut = prefix(q, size, False), prefix(p, size, False)
    expected = -sum(log_softmax([dot(a, b) for b in p_cut])[i] for i, a in enumerate(q_cut)) / B
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_accuracy_counts_positives_with_scores_far_below_zero():
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = torch.tensor([[-30.0, -90.0], [-90.0, -30.0]])
    same = PairBatch([None] * 2, [None] * 2, torch.arange(2), torch.tensor([5, 6]))
    _, metrics = Contrastive(temperature=None, normalise=False)(FixedVectors(q, p), same)
    assert metrics["accuracy"] == 1.0
    # A copy of the positive is not counted, whatever its score.
    texts = TextBatch([None] * 2, torch.tensor([3, 3]))
    _, metrics = Simcse(temperature=None, normalise=False)(FixedVectors(q, p), texts)
    assert metrics["accuracy"] == 1.0


@pytest.mark.parametrize("sampled", [None, 6])
@pytest.mark.parametrize("size", [DIMS, PREFIX])
def test_a_raw_student_of_a_raw_teacher_in_one_space_equals_plain_loops(size, sampled):
    student, teacher = raw_vectors(1), raw_vectors(2)
    others = None if sampled is None else raw_vectors(3, sampled)
    weights = {"squared_l2": 1.0, "pairwise_mse": 1.0, "similarity_order": 1.0, "ranking_kl": 1.0}
    loss = Distillation(**weights, dims={size: 1.0}, normalise=False, teacher_normalise=False)
    batch = TextBatch([None] * B, torch.arange(B), teacher, others)
    _, metrics = loss(FixedVectors(student), batch)
    s, t = prefix(student, size, False), prefix(teacher, size, False)
    whole = teacher.tolist()
    targets = [*whole, *([] if others is None else others.tolist())]
    cut_targets = [target[:size] for target in targets]
    texts = range(B)
    squared = sum(
        (x - y) ** 2 for a, b in zip(s, t, strict=True) for x, y in zip(a, b, strict=True)
    )
    mse = sum((dot(s[i], s[j]) - dot(whole[i], whole[j])) ** 2 for i in texts for j in texts)
    rankings = sum(
        kl([dot(s[i], v) for v in cut_targets], [dot(whole[i], v) for v in targets]) for i in texts
    )
    orders = 0.0
    for i in texts:
        wrong = [
            max(0.0, dot(s[i], s[k]) - dot(s[i], s[j]) + 0.015)
            for j in texts
            for k in texts
            if i not in (j, k) and dot(whole[i], whole[j]) > dot(whole[i], whole[k])
        ]
        orders += sum(wrong) / len(wrong) / B
    expected = {
        "squared_l2": squared / B,
        "pairwise_mse": mse / B**2,
        "similarity_order": orders,
        "ranking_kl": rankings / B,
    }
    assert metrics == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("unit_student", [True, False])
@pytest.mark.parametrize("unit_teacher", [True, False])
@pytest.mark.parametrize("size", [DIMS, PREFIX])
def test_pair_losses_compare_each_model_s_own_scores(unit_student, unit_teacher, size):
    q, p = (unit_vectors if unit_student else raw_vectors)(1), raw_vectors(2)
    p = torch.nn.functional.normalize(p, dim=-1) if unit_student else p
    teacher_q, teacher_p = ((unit_vectors if unit_teacher else raw_vectors)(n) for n in (3, 4))
    batch = PairBatch(
        [None] * B, [None] * B, torch.arange(B), torch.tensor([5, 6, 7, 8]),
        teacher_queries=teacher_q, teacher_passages=teacher_p,
    )  # fmt: skip
    loss = Distillation(
        score_kl=1.0, margin_mse=1.0, contrastive=1.0, dims={size: 1.0},
        normalise=unit_student, teacher_normalise=unit_teacher,
    )  # fmt: skip
    _, metrics = loss(FixedVectors(q, p), batch)
    # The defaults: cosines are divided by .05, raw scores by nothing.
    t, teacher_t = (0.05 if unit else 1.0 for unit in (unit_student, unit_teacher))
    q_cut, p_cut = prefix(q, size, unit_student), prefix(p, size, unit_student)
    scores = [[dot(a, b) for b in p_cut] for a in q_cut]
    teacher_scores = [[dot(a, b) for b in teacher_p] for a in teacher_q]
    expected = {"score_kl": 0.0, "margin_mse": 0.0, "contrastive": 0.0}
    for i, (own, theirs) in enumerate(zip(scores, teacher_scores, strict=True)):
        expected["score_kl"] += kl([x / t for x in own], [x / teacher_t for x in theirs]) / B
        expected["contrastive"] -= log_softmax([x / t for x in own])[i] / B
        margins = [(own[i] - own[j] - theirs[i] + theirs[j]) ** 2 for j in range(B) if j != i]
        expected["margin_mse"] += sum(margins) / len(margins) / B
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_a_raw_teacher_s_softmax_is_not_one_hot_by_default():
    """Its scores are 30 to 100: divided by a temperature of cosines, only the best would count."""
    teacher = torch.tensor([[60.0, 59.0, 58.0]])
    student = torch.tensor([[0.9, 0.9, 0.9]])
    batch = PairBatch(
        [None], [None] * 3, torch.arange(1), torch.tensor([5, 6, 7]),
        teacher_queries=torch.tensor([[1.0]]), teacher_passages=teacher.T,
    )  # fmt: skip
    by_default, of_cosines = (
        Distillation(score_kl=1.0, teacher_temperature=temperature, teacher_normalise=False)(
            FixedVectors(torch.tensor([[1.0]]), student.T), batch
        )[1]["score_kl"]
        for temperature in (None, 0.05)
    )
    assert of_cosines == pytest.approx(math.log(3), abs=1e-6)  # that of a label
    assert by_default == pytest.approx(kl([0.0] * 3, [60.0, 59.0, 58.0]), rel=1e-4)
    assert by_default < of_cosines - 0.2
