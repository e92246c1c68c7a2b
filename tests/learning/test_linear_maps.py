"""Maps solved from sums over texts equal what numpy and scipy solve from the texts themselves."""

import functools
import operator

import numpy as np
import pytest
import scipy.linalg
import torch

from stillroom.learning.linear_maps import (
    Moments,
    principal_components,
    procrustes,
    relative_error,
    ridge_regression,
)


def texts(n, h, d, *, lengths=False, rank=None, seed=0):
    """Random states and vectors that are partly a linear map of them."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n, rank or h)) @ rng.normal(size=(rank or h, h))
    vectors = states @ rng.normal(size=(h, d)) + rng.normal(size=(n, d))
    if lengths:
        return 5 * states, 3 * vectors
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (states, vectors))


def moments_of(states, vectors):
    return Moments.of(torch.from_numpy(states), torch.from_numpy(vectors))


SHAPES = [(8, 5), (5, 8), (6, 6)]


@pytest.mark.parametrize("whitening", [0.1, 0.2, 0.5])
@pytest.mark.parametrize(("h", "d"), SHAPES)
def test_procrustes_of_whitened_states_is_scipy_s_of_the_states_themselves_whitened(
    h, d, whitening
):
    states, vectors = texts(400, h, d)
    gram = states.T @ states
    whiten = scipy.linalg.fractional_matrix_power(gram / (np.trace(gram) / h), -whitening)
    whitened, size = states @ whiten, max(h, d)
    filled = [np.pad(rows, ((0, 0), (0, size - rows.shape[1]))) for rows in (whitened, vectors)]
    rotation, total = scipy.linalg.orthogonal_procrustes(*filled)
    expected = (whiten @ (total / (whitened**2).sum() * rotation[:h, :d])).T
    found = procrustes(moments_of(states, vectors), whitening=whitening)
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_whole_whitening_makes_all_directions_of_the_texts_equal():
    states, vectors = texts(400, 5, 8)
    mapped = states @ procrustes(moments_of(states, vectors), whitening=0.5).T.numpy()
    spread = np.linalg.svd(mapped, compute_uv=False)[:5]
    np.testing.assert_allclose(spread, spread.mean(), rtol=1e-2)


def test_a_direction_that_no_text_has_is_not_enlarged_without_bound():
    states, vectors = texts(60, 6, 4, rank=3)
    found = procrustes(moments_of(states, vectors), whitening=0.5)
    assert found.isfinite().all()
    assert found.norm() < 100 * procrustes(moments_of(states, vectors)).norm()


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_the_sums_of_shards_add_up_to_those_of_all_texts(shards):
    states, vectors = texts(40, 6, 4)
    parts = [
        moments_of(x, y)
        for x, y in zip(
            np.array_split(states, shards), np.array_split(vectors, shards), strict=True
        )
    ]
    total = functools.reduce(operator.add, parts, Moments.zero(6, 4))
    np.testing.assert_allclose(total.xx_hh, states.T @ states, atol=1e-12)
    np.testing.assert_allclose(total.xy_hd, states.T @ vectors, atol=1e-12)
    assert total.yy == pytest.approx((vectors**2).sum())
    assert total.xx_hh.dtype == torch.float64


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("h", "d"), SHAPES)
def test_procrustes_is_scipy_s_for_vectors_filled_with_zeros(h, d, lengths):
    states, vectors = texts(60, h, d, lengths=lengths)
    size = max(h, d)
    filled = [np.pad(rows, ((0, 0), (0, size - rows.shape[1]))) for rows in (states, vectors)]
    rotation, total = scipy.linalg.orthogonal_procrustes(*filled)  # X R ≈ Y
    expected = total / (states**2).sum() * rotation[:h, :d].T
    np.testing.assert_allclose(procrustes(moments_of(states, vectors)), expected, atol=1e-9)


@pytest.mark.parametrize("n", [3, 60])  # 3: fewer texts than dims
@pytest.mark.parametrize("rank", [2, 6])
def test_procrustes_keeps_every_cosine_of_a_student_narrower_than_its_teacher(n, rank):
    states, vectors = texts(n, 6, 9, rank=rank)
    weight = procrustes(moments_of(states, vectors)).numpy()
    others = np.random.default_rng(1).normal(size=(20, 6))
    scale = np.linalg.norm(weight[:, 0])
    assert scale > 0
    np.testing.assert_allclose(
        (others @ weight.T) @ (others @ weight.T).T / scale**2, others @ others.T, atol=1e-9
    )


@pytest.mark.parametrize("ridge", [1e-4, 0.3, 10.0])
@pytest.mark.parametrize("towards", [False, True])
@pytest.mark.parametrize(("n", "h", "d"), [(40, 8, 5), (40, 5, 8), (4, 8, 5)])
def test_a_ridge_is_least_squares_with_the_penalty_as_further_rows(n, h, d, ridge, towards):
    states, vectors = texts(n, h, d, lengths=True)
    start = np.random.default_rng(2).normal(size=(d, h)) if towards else np.zeros((d, h))
    penalty = np.sqrt(ridge * (states**2).sum(0).mean()) * np.eye(h)
    expected, *_ = np.linalg.lstsq(
        np.vstack([states, penalty]), np.vstack([vectors, penalty @ start.T]), rcond=None
    )
    weight = ridge_regression(
        moments_of(states, vectors), ridge=ridge,
        towards_dh=torch.from_numpy(start) if towards else None,
    )  # fmt: skip
    np.testing.assert_allclose(weight, expected.T, atol=1e-6)


def test_a_ridge_towards_a_map_keeps_it_in_directions_that_no_text_has():
    states, vectors = texts(30, 6, 4, lengths=True)
    states[:, 5] = 0
    start = torch.randn(4, 6, dtype=torch.double)
    weight = ridge_regression(moments_of(states, vectors), ridge=1e-6, towards_dh=start)
    np.testing.assert_allclose(weight[:, 5], start[:, 5], atol=1e-9)
    expected, *_ = np.linalg.lstsq(states[:, :5], vectors, rcond=None)
    np.testing.assert_allclose(weight[:, :5], expected.T, atol=1e-4)


@pytest.mark.parametrize(("h", "d"), SHAPES)
def test_the_error_from_the_sums_is_that_of_the_texts(h, d):
    states, vectors = texts(50, h, d, lengths=True)
    weight = np.random.default_rng(3).normal(size=(d, h))
    expected = ((states @ weight.T - vectors) ** 2).sum() / (vectors**2).sum()
    measured = relative_error(torch.from_numpy(weight), moments_of(states, vectors))
    assert measured == pytest.approx(expected)


def test_principal_components_are_the_leading_singular_vectors():
    states, vectors = texts(50, 8, 5, lengths=True)
    weight = principal_components(moments_of(states, vectors), 3).numpy()
    _, _, directions = np.linalg.svd(states, full_matrices=False)
    np.testing.assert_allclose(np.abs((weight * directions[:3]).sum(1)), 1, atol=1e-9)
