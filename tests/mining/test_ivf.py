"""Approximate search: what it finds on raw vectors, and the memory that it takes."""

import numpy as np
import pytest

from stillroom.mining import ivf
from stillroom.mining.exact import row_dots, search
from stillroom.mining.ivf import InvertedFile, memory_to_build, recall_of_exact
from support.process_memory import process_memory


def clustered(rng, count, dims=16):
    directions = np.random.default_rng(1).normal(size=(40, dims))
    rows = directions[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, dims))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (4.0, 8.0)])
def test_passages_of_different_lengths_are_found_and_scored_by_inner_product(lengths):
    rng = np.random.default_rng(0)
    passages = (clustered(rng, 4000) * rng.uniform(*lengths, size=(4000, 1))).astype(np.float16)
    queries = (5 * clustered(rng, 50)).astype(np.float32)
    block = (np.arange(4000), passages)
    index = InvertedFile(lambda: [block], lists=40, probes=20)
    scores, rows = index.search(queries, 10)
    _, exact = search(queries, [block], 10)
    assert recall_of_exact(rows, exact) > 0.99
    for query, row_scores, found in zip(queries, scores, rows, strict=True):
        dots = row_dots(np.tile(query, (10, 1)), passages[found])
        np.testing.assert_allclose(row_scores, dots, rtol=1e-3)


def test_the_measured_recall_shows_where_lengths_decide_more_than_directions():
    rng = np.random.default_rng(0)
    passages = (clustered(rng, 4000) * np.exp(2 * rng.normal(size=(4000, 1)))).astype(np.float16)
    queries = clustered(rng, 50).astype(np.float32)
    block = (np.arange(4000), passages)
    _, exact = search(queries, [block], 10)
    few, all_lists = (
        InvertedFile(lambda: [block], lists=40, probes=probes).search(queries, 10)[1]
        for probes in (4, 40)
    )
    assert recall_of_exact(few, exact) < 0.8 < 0.99 < recall_of_exact(all_lists, exact)


def test_lists_filled_in_parts_find_what_lists_filled_at_once_find(monkeypatch):
    rng = np.random.default_rng(0)
    passages = clustered(rng, 4000).astype(np.float16)
    queries = clustered(rng, 50).astype(np.float32)
    blocks = [(rows, passages[rows]) for rows in np.array_split(rng.permutation(4000), 7)]
    at_once = InvertedFile(lambda: blocks, lists=40, probes=4).search(queries, 10)
    monkeypatch.setattr(ivf, "BUFFERED_BYTES", 300 * 2 * passages.shape[1])
    in_parts = InvertedFile(lambda: blocks, lists=40, probes=4).search(queries, 10)
    for part, whole in zip(in_parts, at_once, strict=True):
        np.testing.assert_array_equal(part, whole)


def test_memory_holds_the_passages_in_part_and_no_file_is_left(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    passages = rng.normal(size=(400_000, 64)).astype(np.float16)
    monkeypatch.setattr(ivf, "BUFFERED_BYTES", 2**20)
    monkeypatch.setattr(ivf.tempfile, "tempdir", str(tmp_path))
    before = process_memory()["Anonymous"]
    index = InvertedFile(lambda: [(np.arange(len(passages)), passages)], lists=64, probes=4)
    assert index.index.ntotal == len(passages)
    needed = memory_to_build(len(passages), 64, 64)
    assert process_memory()["Anonymous"] - before < needed + passages.nbytes / 4
    assert list(tmp_path.iterdir()) == []
