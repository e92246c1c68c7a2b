import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.mining import exact as module
from stillroom.mining.exact import merge_top_k, row_dots, search


def brute_force(queries, passages, k):
    """Sorts every score in Python."""
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for q, query in enumerate(queries):
        dots = row_dots(np.tile(query, (len(passages), 1)), passages)
        ranked = sorted((-score, row) for row, score in enumerate(dots.tolist()))
        for rank, (score, row) in enumerate(ranked[:k]):
            scores[q, rank], rows[q, rank] = -score, row
    return scores, rows


def vectors(rng, count, kind):
    """Whole numbers have many ties; near copies differ by less than bfloat16 can represent; raw
    vectors of a model that dot compares have lengths from .1 to 1,000, and scores of any size."""
    if kind == "whole":
        return rng.integers(-2, 3, size=(count, 5)).astype(np.float16)
    if kind == "copies":
        centre = rng.normal(size=(2, 33))
        return (centre[rng.integers(0, 2, count)] + rng.normal(size=(count, 1)) * 1e-3).astype("f2")
    if kind == "raw":
        lengths = 10.0 ** rng.uniform(-1, 3, size=(count, 1))
        return (lengths * (rng.normal(size=33) + rng.normal(size=(count, 33))) / 33**0.5).astype(
            "f2"
        )
    return rng.normal(size=(count, 33)).astype(np.float16)


@settings(max_examples=80, deadline=None)
# The row just below the top k is the lowest of those tied with it.
@example(seed=0, kind="whole", passages=12, k=5, cuts=[], per_product=50, dtype=torch.float32)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["whole", "copies", "normal", "raw"]),
    passages=st.integers(1, 120),
    k=st.integers(1, 45),
    cuts=st.lists(st.integers(0, 120), max_size=3),
    per_product=st.integers(1, 150),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@pytest.mark.promise("mining")
def test_search_equals_brute_force_bit_for_bit_however_passages_are_split(
    seed, kind, passages, k, cuts, per_product, dtype
):
    rng = np.random.default_rng(seed)
    queries, all_passages = vectors(rng, 7, kind).astype(np.float32), vectors(rng, passages, kind)
    order = rng.permutation(passages)
    bounds = sorted({0, passages, *(cut for cut in cuts if cut < passages)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_filter_dtype", lambda device: dtype)
        patch.setattr(module, "QUERIES_PER_PRODUCT", 3)
        parts = [
            search(
                queries,
                [(order[a:b], all_passages[order[a:b]])],
                k,
                passages_per_product=per_product,
            )
            for a, b in itertools.pairwise(bounds)
        ]
    scores, rows = merge_top_k(parts, k)
    expected_scores, expected_rows = brute_force(queries, all_passages, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_a_row_in_several_results_counts_once():
    first = np.array([[0.9, 0.5]], np.float32), np.array([[4, 2]])
    second = np.array([[0.9, 0.7]], np.float32), np.array([[4, 1]])
    scores, rows = merge_top_k([first, second], 4)
    assert rows.tolist() == [[4, 1, 2, -1]]
    np.testing.assert_array_equal(scores, np.array([[0.9, 0.7, 0.5, -np.inf]], np.float32))


@pytest.mark.parametrize("k", [1, 5])
def test_a_search_without_passages_finds_none(k):
    scores, rows = search(np.ones((2, 3), np.float32), [], k)
    assert rows.tolist() == [[-1] * k] * 2
    assert np.isneginf(scores).all()
