"""Sources of rows as runs, and the draws of sources."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.learning import source_draws, source_runs
from stillroom.learning.source_draws import SourceDraws
from stillroom.learning.source_runs import NO_SOURCE, SourceRuns

sources = st.lists(st.integers(0, 3), max_size=40).map(lambda numbers: np.array(numbers, int))


def numbers(runs):
    return runs[np.arange(len(runs))].tolist()


@given(first=sources, second=sources, seed=st.integers(0, 99))
def test_runs_say_what_an_array_of_sources_says(first, second, seed):
    joined = SourceRuns.of(first).joined(SourceRuns.of(second)).followed_by(7, 3)
    expected = np.concatenate([first, second, [7, 7, 7]])
    assert numbers(joined) == expected.tolist()
    rng = np.random.default_rng(seed)
    left_out = rng.choice(len(expected), rng.integers(len(expected)), replace=False)
    runs = joined.without(left_out)
    expected[left_out] = NO_SOURCE
    assert numbers(runs) == expected.tolist()
    for source in range(8):
        rows = runs.rows_of(source)
        np.testing.assert_array_equal(
            rows[np.arange(len(rows))], np.flatnonzero(expected == source)
        )


def test_a_long_array_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(source_runs, "CHUNK", 3)
    array = np.repeat([0, 1, 0, 2], [3, 1, 4, 6])
    runs = SourceRuns.of(array)
    assert numbers(runs) == array.tolist() and len(runs.numbers) == 4


@pytest.mark.promise("resume")
def test_draws_do_not_depend_on_earlier_ones_or_on_blocks(monkeypatch):
    shares = np.array([0.5, 0.0, 0.3, 0.2])
    uniform = np.random.default_rng([3, 0]).random(500)
    expected = np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")
    for block in (7, 1000):
        monkeypatch.setattr(source_draws, "BLOCK", block)
        draws = SourceDraws(shares, seed=3)
        for start, stop in [(0, 5), (5, 30), (400, 500), (28, 29), (0, 500)]:
            drawn, before = draws.between(start, stop)
            np.testing.assert_array_equal(drawn, expected[start:stop])
            np.testing.assert_array_equal(before, np.bincount(expected[:start], minlength=4))
