import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.mining import search as module
from stillroom.mining.search import merge, search


def brute_force(queries, passages, k):
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for q, query in enumerate(queries):
        every = sorted((-float(query @ passage), row) for row, passage in enumerate(passages))
        for place, (score, row) in enumerate(every[:k]):
            scores[q, place], rows[q, place] = -score, row
    return scores, rows


@settings(max_examples=60, deadline=None)
# The row beyond the last place is the lowest of those that are tied with it.
@example(seed=0, passages=12, k=5, cuts=[], block=50)
@given(
    seed=st.integers(0, 10**6),
    passages=st.integers(1, 40),
    k=st.integers(1, 45),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    block=st.integers(1, 50),
)
def test_parts_merged_are_what_brute_force_finds_ties_and_all(seed, passages, k, cuts, block):
    rng = np.random.default_rng(seed)
    # Small whole numbers: exact in every kernel, and full of ties.
    queries = rng.integers(-2, 3, size=(4, 3)).astype(np.float32)
    everyone = rng.integers(-2, 3, size=(passages, 3)).astype(np.float16)
    bounds = sorted({0, passages, *(cut for cut in cuts if cut < passages)})
    before, module.BLOCK = module.BLOCK, block
    try:
        parts = []
        for start, stop in itertools.pairwise(bounds):
            scores, rows = search(queries, everyone[start:stop], k)
            parts.append((scores, np.where(rows >= 0, rows + start, -1)))
        scores, rows = merge(parts, k)
    finally:
        module.BLOCK = before
    expected_scores, expected_rows = brute_force(queries, everyone.astype(np.float32), k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_real_vectors_are_ranked_as_a_full_sort_ranks_them():
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(20, 32)), rng.normal(size=(3000, 32))
    scores, rows = search(queries.astype(np.float32), passages.astype(np.float32), 50)
    exact = queries.astype(np.float32) @ passages.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :50])
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_nothing_to_search_gives_nothing(k):
    scores, rows = search(np.ones((2, 3), np.float32), np.empty((0, 3), np.float16), k)
    assert rows.tolist() == [[-1] * k] * 2
    assert np.isneginf(scores).all()
