"""Approximate search: what it finds on raw vectors, and the memory that it takes."""

import faiss
import numpy as np
import pytest

from stillroom.mining import ivf
from stillroom.mining.exact import merge_top_k, row_dots, search
from stillroom.mining.ivf import (
    FLAT_CENTRES,
    Centres,
    InvertedFile,
    learn_centres,
    memory_to_fill,
    memory_to_learn,
    number_of_lists,
    recall_of_exact,
)
from support.process_memory import process_memory


def clustered(rng, count, dims=16):
    directions = np.random.default_rng(1).normal(size=(40, dims))
    rows = directions[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, dims))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(passages, lists):
    block = (np.arange(len(passages)), passages)
    return InvertedFile([block], Centres(learn_centres([block], len(passages), lists)))


def found(inverted, queries, probes, k=10):
    return inverted.search(queries, inverted.centres.nearest(queries, probes), k)


def exactly(queries, passages, k=10):
    return search(queries, [(np.arange(len(passages)), passages)], k)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (4.0, 8.0)])
def test_passages_of_different_lengths_are_found_and_scored_by_inner_product(lengths):
    rng = np.random.default_rng(0)
    passages = (clustered(rng, 4000) * rng.uniform(*lengths, size=(4000, 1))).astype(np.float16)
    queries = (5 * clustered(rng, 50)).astype(np.float32)
    scores, rows = found(filled(passages, 40), queries, 20)
    assert recall_of_exact((scores, rows), exactly(queries, passages)) > 0.99
    for query, row_scores, of_query in zip(queries, scores, rows, strict=True):
        dots = row_dots(np.tile(query, (10, 1)), passages[of_query])
        np.testing.assert_allclose(row_scores, dots, rtol=1e-3)


def test_the_measured_recall_shows_where_lengths_decide_more_than_directions():
    rng = np.random.default_rng(0)
    passages = (clustered(rng, 4000) * np.exp(2 * rng.normal(size=(4000, 1)))).astype(np.float16)
    queries = clustered(rng, 50).astype(np.float32)
    inverted, exact = filled(passages, 40), exactly(queries, passages)
    few, all_lists = (found(inverted, queries, probes) for probes in (4, 64))
    assert recall_of_exact(few, exact) < 0.8 < 0.99 < recall_of_exact(all_lists, exact)


def test_several_files_with_the_same_centres_find_what_one_finds():
    rng = np.random.default_rng(0)
    passages = clustered(rng, 4000).astype(np.float16)
    queries = clustered(rng, 50).astype(np.float32)
    whole = filled(passages, 40)
    lists = whole.centres.nearest(queries, 4)
    parts = [
        InvertedFile([(rows, passages[rows])], Centres(whole_centres(whole)))
        for rows in np.array_split(rng.permutation(4000), 3)
    ]
    divided = merge_top_k([part.search(queries, lists, 10) for part in parts], 10)
    together = merge_top_k([whole.search(queries, lists, 10)], 10)
    for one, other in zip(divided, together, strict=True):
        np.testing.assert_array_equal(one, other)


def whole_centres(inverted):
    centres = inverted.centres
    return centres._index.reconstruct_n(0, centres.count)


def test_lists_filled_in_parts_find_what_lists_filled_at_once_find(monkeypatch):
    rng = np.random.default_rng(0)
    passages = clustered(rng, 4000).astype(np.float16)
    queries = clustered(rng, 50).astype(np.float32)
    at_once = found(filled(passages, 40), queries, 4)
    monkeypatch.setattr(ivf, "BUFFERED_BYTES", 300 * 2 * passages.shape[1])
    in_parts = found(filled(passages, 40), queries, 4)
    for part, whole in zip(in_parts, at_once, strict=True):
        np.testing.assert_array_equal(part, whole)


def test_a_graph_of_many_centres_finds_the_nearest_and_is_the_same_by_any_number_of_threads():
    rng = np.random.default_rng(0)
    centres = clustered(rng, FLAT_CENTRES + 1).astype(np.float32)
    queries = clustered(rng, 200).astype(np.float32)
    by_threads = []
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        by_threads.append(Centres(centres).nearest(queries, 8))
    np.testing.assert_array_equal(*by_threads)
    exact = np.argsort(-queries @ centres.T, axis=1)[:, :8]
    assert (exact[:, :, None] == by_threads[0][:, None, :]).any(2).mean() > 0.98


def test_two_levels_of_centres_are_nearly_as_near_to_the_passages_as_one():
    rng = np.random.default_rng(0)
    passages = clustered(rng, 20_000).astype(np.float32)
    flat = faiss.Kmeans(16, 256, niter=10, spherical=True)
    flat.train(passages)
    two = learn_centres([(np.arange(20_000), passages)], 20_000, 256)
    one_level, two_levels = (
        (passages @ centres.T).max(axis=1).mean() for centres in (flat.centroids, two)
    )
    assert len(two) == pytest.approx(256, rel=0.05)
    assert two_levels > 0.98 * one_level
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, rtol=1e-4)


def test_equal_passages_have_lists_too():
    same = np.ones((500, 8), dtype=np.float16)
    scores, _ = found(filled(same, 20), same[:3].astype(np.float32), 64, k=5)
    np.testing.assert_allclose(scores, 8)


def test_recall_counts_what_was_missed_but_not_which_of_two_equal_scores_was_taken():
    exact = np.array([[0.9, 0.8, 0.7, 0.7]]), np.array([[1, 2, 3, 4]])
    other_tie = np.array([[0.9, 0.8, 0.7, 0.7]]), np.array([[1, 2, 3, 5]])
    missed = np.array([[0.9, 0.7, 0.7, 0.6]]), np.array([[1, 3, 4, 6]])
    nothing = np.array([[-np.inf]]), np.array([[-1]])
    assert recall_of_exact(other_tie, exact) == 1
    assert recall_of_exact(missed, exact) == 0.75
    assert recall_of_exact(nothing, exact) == 0


def test_lists_stay_as_long_for_more_passages_up_to_their_largest_number():
    assert [number_of_lists(n) for n in (3, 10_000, 1_000_000)] == [3, 400, 4000]
    assert 10_000_000 / number_of_lists(10_000_000) == pytest.approx(256, rel=0.01)
    assert number_of_lists(10**9) == max(ivf.MOST_LISTS, round(4 * 10**4.5))


def test_memory_holds_the_passages_in_part_and_no_file_is_left(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    passages = rng.normal(size=(400_000, 64)).astype(np.float16)
    monkeypatch.setattr(ivf, "BUFFERED_BYTES", 2**20)
    monkeypatch.setattr(ivf.tempfile, "tempdir", str(tmp_path))
    before = process_memory()["Anonymous"]
    inverted = filled(passages, 64)
    assert inverted.index.ntotal == len(passages)
    needed = memory_to_learn(400_000, 64, 64) + memory_to_fill(400_000, 64, 64)
    assert process_memory()["Anonymous"] - before < needed + passages.nbytes / 4
    assert list(tmp_path.iterdir()) == []
