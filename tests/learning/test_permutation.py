"""Orders as functions of the position: uniform, and each row once."""

import numpy as np
import pytest
from scipy import stats

from stillroom.learning import permutation
from stillroom.learning.permutation import SHUFFLED_ROWS, Permutation

LARGE = 70_001  # too many rows to be shuffled in memory
BINS = 64


@pytest.mark.parametrize(
    "n", [1, 2, 7, SHUFFLED_ROWS, SHUFFLED_ROWS + 1, 300 * 300, 300 * 300 + 1, 99_991]
)
def test_each_row_has_one_position(n):
    rows = Permutation(n, (1, n))[np.arange(n)]
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))


def test_a_position_of_a_billion_rows_is_found_without_making_a_list_of_them():
    positions = np.array([0, 999_999_999, 123_456_789])
    rows = Permutation(1_000_000_000, (5,))[positions]
    assert (rows >= 0).all() and (rows < 1_000_000_000).all() and len({*rows.tolist()}) == 3
    np.testing.assert_array_equal(rows[1:2], Permutation(1_000_000_000, (5,))[positions[1:2]])


def p_values(key):
    """p-values of a large permutation: rows by position, rows by the row before, and the steps
    between neighbours, in cells of equal size and by their lowest bits."""
    rows = Permutation(LARGE, key)[np.arange(LARGE)]
    of_row, of_position = rows * BINS // LARGE, np.arange(LARGE) * BINS // LARGE
    steps = (rows[1:] - rows[:-1]) % LARGE

    def independent(first, second):
        counts = np.bincount(first * BINS + second, minlength=BINS**2).reshape(BINS, BINS)
        return stats.chi2_contingency(counts).pvalue

    def uniform(values):
        return stats.chisquare(np.bincount(values, minlength=BINS)).pvalue

    return [
        independent(of_position, of_row),
        independent(of_row[:-1], of_row[1:]),
        uniform(steps * BINS // LARGE),
        uniform((rows[1:] ^ rows[:-1]) % BINS),
    ]


def worst_uniformity():
    """The least p-value of four: that p-values of twelve permutations are uniform themselves."""
    by_test = zip(*(p_values((seed, 5)) for seed in range(12)), strict=True)
    return min(stats.kstest(values, "uniform").pvalue for values in by_test)


def test_positions_and_neighbours_are_uniform(monkeypatch):
    assert worst_uniformity() > 1e-3
    monkeypatch.setattr(permutation, "ROUNDS", 2)  # too few: the test can fail
    assert worst_uniformity() < 1e-6


def test_a_position_gets_every_row_alike_over_the_keys():
    keys = [Permutation(LARGE, (seed, 9))[np.array([0, 1])] for seed in range(3000)]
    first, second = (np.array(keys) * 20 // LARGE).T
    assert stats.chisquare(np.bincount(first * 20 + second, minlength=400)).pvalue > 1e-3
