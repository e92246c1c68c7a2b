"""Paired bootstrap of the difference of two models."""

import numpy as np
import pytest

from stillroom.evaluation import intervals
from stillroom.evaluation.intervals import paired_difference


def scores(seed, queries=200, shift=0.0):
    return np.clip(np.random.default_rng(seed).uniform(size=queries) + shift, 0, 1)


def test_every_set_counts_the_same_whatever_its_size():
    first = {"small": np.ones(10), "large": np.zeros(1000)}
    second = {"small": np.zeros(10), "large": np.zeros(1000)}
    result = paired_difference(first, second)
    assert (result.first, result.second, result.difference) == (0.5, 0.0, 0.5)
    assert (result.low, result.high, result.queries) == (0.5, 0.5, 1010)


def test_a_model_against_itself_differs_by_nothing():
    one = {"one": scores(0), "two": scores(1)}
    assert paired_difference(one, one).low == paired_difference(one, one).high == 0


def test_pairing_finds_a_small_difference_that_two_separate_samples_hide():
    one = scores(0)
    lower = np.clip(one - 0.02, 0, 1)
    assert paired_difference({"s": lower}, {"s": one}).high < 0
    other = scores(1)  # of the same mean, on other queries
    result = paired_difference({"s": other - 0.02}, {"s": one})
    assert result.low < 0 < result.high


def test_the_interval_is_that_of_the_normal_approximation_for_many_queries(monkeypatch):
    monkeypatch.setattr(intervals, "BLOCK", 5000)  # several blocks
    one, other = scores(0, 2000), scores(1, 2000)
    result = paired_difference({"s": one}, {"s": other})
    error = (one - other).std() / np.sqrt(2000)
    assert result.high - result.difference == pytest.approx(1.96 * error, rel=0.1)
    assert result.difference - result.low == pytest.approx(1.96 * error, rel=0.1)
