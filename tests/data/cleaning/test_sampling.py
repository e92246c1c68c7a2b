import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.data.cleaning.sampling import (
    RANK_BINS,
    cutoff_bin,
    held_out_set,
    random_ranks,
    rank_bins,
)
from stillroom.data.cleaning.text_keys import hash_texts
from stillroom.data.readers.records import Pair

OPENING = "The same opening words are shared by every one of the versions of this passage, " * 2


def test_every_query_has_its_own_passage_and_no_other():
    pairs = [Pair(f"query {i}", f"passage {i}") for i in range(9)]
    held_out = held_out_set(pairs, queries=5)
    assert list(held_out.passages.values()) == [pair.passage for pair in pairs]
    assert len(held_out.qrels) == len(held_out.queries) == 5
    for query, grades in held_out.qrels.items():
        [(passage, grade)] = grades.items()
        assert grade == 1
        assert Pair(held_out.queries[query], held_out.passages[passage]) in pairs


def test_ranks_depend_on_seed_and_text_only_and_never_tie():
    keys = hash_texts(f"text {i}" for i in range(2000))
    assert (random_ranks(keys, 1)[::-1] == random_ranks(keys[::-1], 1)).all()
    assert len(np.unique(random_ranks(keys, 1))) == len(keys)
    samples = [set(np.argsort(random_ranks(keys, seed))[:200].tolist()) for seed in (1, 2)]
    assert len(samples[0] & samples[1]) < 60, "two seeds draw the same"


def cutoff(blocks, count):
    """The `count`-th lowest rank, of blocks of which one at a time is looked at."""
    sizes = sum(np.bincount(rank_bins(block), minlength=RANK_BINS) for block in blocks)
    number, index = cutoff_bin(sizes, count)
    return sorted(rank for block in blocks for rank in block[rank_bins(block) == number])[index]


@given(st.sets(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 9), st.data())
def test_the_cutoff_equals_that_of_a_sort(numbers, width, data):
    count = data.draw(st.integers(1, len(numbers)))
    blocks = np.array_split(np.array(list(numbers), dtype=np.uint64), width)
    assert cutoff(blocks, count) == sorted(numbers)[count - 1]


@pytest.mark.parametrize("most", [1, 2])
def test_neighbouring_ranks_are_distinguished(most):
    blocks = [np.array([2**63 + 1, 2**63], dtype=np.uint64)]
    assert cutoff(blocks, most) == 2**63 + most - 1
