"""Losses against plain loops, and the identities that they satisfy."""

import math

import numpy as np
import pytest
import torch

from stillroom.learning import losses as module
from stillroom.learning.losses import (
    cosine,
    info_nce,
    margin_mse,
    pairwise_mse,
    score_kl,
    similarity_order,
    squared_l2,
)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (5, 9)), rng.uniform(-1, 1, (5, 9))


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_info_nce_equals_a_plain_loop(scores):
    student, _ = scores
    positive = [3, 0, 8, 1, 1]
    expected = 0.0
    for row, column in zip(student, positive, strict=True):
        expected -= math.log(softmax([value / 0.07 for value in row])[column]) / len(student)
    computed = info_nce(torch.tensor(student), torch.tensor(positive), temperature=0.07)
    assert float(computed) == pytest.approx(expected, rel=1e-5)


def test_an_ignored_candidate_counts_as_absent(scores):
    student, _ = scores
    ignore = torch.zeros(5, 9, dtype=torch.bool)
    ignore[:, 4:6] = True
    computed = info_nce(
        torch.tensor(student), torch.tensor([0, 1, 2, 3, 0]), temperature=0.1, ignore_bn=ignore
    )
    without = torch.tensor(np.delete(student, [4, 5], axis=1))
    expected = info_nce(without, torch.tensor([0, 1, 2, 3, 0]), temperature=0.1)
    torch.testing.assert_close(computed, expected)


def test_score_kl_equals_a_plain_loop(scores):
    student, teacher = scores
    expected = 0.0
    for s_row, t_row in zip(student, teacher, strict=True):
        s = softmax([value / 0.1 for value in s_row])
        t = softmax([value / 0.3 for value in t_row])
        expected += sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) / len(student)
    computed = score_kl(
        torch.tensor(student),
        torch.tensor(teacher),
        student_temperature=0.1,
        teacher_temperature=0.3,
    )
    assert float(computed) == pytest.approx(expected, rel=1e-5)


def test_score_kl_is_zero_for_equal_scores_even_where_some_are_ignored(scores):
    student = torch.tensor(scores[0])
    ignore = torch.rand(5, 9) < 0.3
    ignore[:, 0] = False
    kl = score_kl(
        student, student, student_temperature=0.1, teacher_temperature=0.1, ignore_bn=ignore
    )
    assert float(kl) == pytest.approx(0, abs=1e-6)


def test_an_ignored_candidate_counts_as_absent_whatever_the_scale_of_the_scores(scores):
    """Raw inner products over a small temperature may be below any number that stands for it."""
    student, teacher = (20 * rows - 5000 for rows in scores)
    ignore = torch.zeros(5, 9, dtype=torch.bool)
    ignore[:, 4:6] = True
    temperatures = {"student_temperature": 0.05, "teacher_temperature": 0.05}
    raw = torch.tensor(student, requires_grad=True)
    computed = score_kl(raw, torch.tensor(teacher), ignore_bn=ignore, **temperatures)
    without = (torch.tensor(np.delete(rows, [4, 5], axis=1)) for rows in (student, teacher))
    torch.testing.assert_close(computed, score_kl(*without, **temperatures))
    [gradient] = torch.autograd.grad(computed, raw)
    assert gradient.isfinite().all()
    assert not gradient[:, 4:6].any()


def test_cosine_depends_on_direction_but_not_on_length():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, -1.0], [0.0, 5.0]])
    assert float(cosine(a, b)) == pytest.approx((0 + 2 + 1) / 3)


def test_leaf_s_squared_distance_is_twice_the_cosine_loss_of_unit_vectors(scores):
    student, teacher = (
        torch.nn.functional.normalize(torch.tensor(rows), dim=-1) for rows in scores
    )
    torch.testing.assert_close(2 * cosine(student, teacher), squared_l2(student, teacher))


def test_squared_l2_equals_a_plain_loop_and_sees_lengths(scores):
    student, teacher = scores
    expected = sum(
        (s - t) ** 2
        for s_row, t_row in zip(student, teacher, strict=True)
        for s, t in zip(s_row, t_row, strict=True)
    ) / len(student)
    computed = squared_l2(torch.tensor(student), torch.tensor(teacher))
    assert float(computed) == pytest.approx(expected, rel=1e-5)
    longer = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert (float(cosine(*longer)), float(squared_l2(*longer))) == (0.0, 4.0)


def test_margin_mse_equals_a_plain_loop(scores):
    student, teacher = scores
    positive, copy = [3, 0, 8, 1, 1], {0: [5], 2: [0, 1]}  # candidates that are the positive's text
    ignore = torch.zeros(5, 9, dtype=torch.bool)
    expected = 0.0
    for i, column in enumerate(positive):
        others = [j for j in range(9) if j != column and j not in copy.get(i, [])]
        for j in others:
            lead = student[i][column] - student[i][j]
            expected += (lead - (teacher[i][column] - teacher[i][j])) ** 2 / len(others) / 5
        ignore[i, copy.get(i, [])] = True
    computed = margin_mse(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(positive), ignore_bn=ignore
    )
    assert float(computed) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("triples", [1, 200, 10**6])  # a row at a time, two, and all
def test_similarity_order_and_its_gradient_equal_a_loop_over_all_triples(
    scores, triples, monkeypatch
):
    monkeypatch.setattr(module, "MAX_TRIPLES", triples)
    student = torch.tensor(scores[0], dtype=torch.float32, requires_grad=True)
    teacher = torch.tensor(scores[1], dtype=torch.float32)
    teacher[:, 4] = teacher[:, 6]  # a tie: neither of the two is nearer
    itself = torch.eye(5, 9, dtype=torch.bool)
    expected = torch.zeros(())
    for i in range(5):
        hinges = [
            torch.relu(student[i, k] - student[i, j] + 0.1)
            for j in range(9)
            for k in range(9)
            if i not in (j, k) and teacher[i, j] > teacher[i, k]
        ]
        expected = expected + torch.stack(hinges).mean() / 5
    [expected_gradient] = torch.autograd.grad(expected, student)
    computed = similarity_order(student, teacher, margin=0.1, ignore_nm=itself)
    [gradient] = torch.autograd.grad(3 * computed, student)
    torch.testing.assert_close(computed, expected)
    torch.testing.assert_close(gradient, 3 * expected_gradient)


def test_losses_of_bfloat16_are_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    student, teacher = (torch.randn(64, 500).bfloat16() for _ in range(2))
    positive = torch.arange(64)
    losses = {
        "info_nce": lambda a, b: info_nce(a, positive, temperature=0.02),
        "score_kl": lambda a, b: score_kl(
            a, b, student_temperature=0.02, teacher_temperature=0.05
        ),
        "cosine": cosine,
        "pairwise_mse": pairwise_mse,
        "margin_mse": lambda a, b: margin_mse(
            a, b, positive, ignore_bn=torch.zeros(64, 500, dtype=torch.bool)
        ),
        "similarity_order": lambda a, b: similarity_order(
            a[:, :64], b[:, :64], margin=0.015, ignore_nm=torch.eye(64, dtype=torch.bool)
        ),
    }  # fmt: skip
    for name, loss in losses.items():
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(student, teacher)
        assert value.dtype == torch.float32, name
        # bfloat16 would round 400 times as coarsely.
        torch.testing.assert_close(value, loss(student.float(), teacher.float()), rtol=1e-5, atol=0)
