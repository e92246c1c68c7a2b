import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.data.cleaning.sampling import held_out_set, last_drawn, lots
from stillroom.data.cleaning.text_keys import hashes
from stillroom.data.readers.records import Pair

OPENING = "The same opening words are shared by every one of the versions of this passage, " * 2


def test_every_query_has_its_own_passage_and_no_other():
    pairs = [Pair(f"query {i}", f"passage {i}") for i in range(9)]
    found = held_out_set(pairs, queries=5)
    assert list(found.passages.values()) == [pair.passage for pair in pairs]
    assert len(found.qrels) == len(found.queries) == 5
    for query, grades in found.qrels.items():
        [(passage, grade)] = grades.items()
        assert grade == 1
        assert Pair(found.queries[query], found.passages[passage]) in pairs


def test_lots_are_decided_by_seed_and_text_and_all_differ():
    keys = hashes(f"text {i}" for i in range(2000))
    assert (lots(keys, 1)[::-1] == lots(keys[::-1], 1)).all()
    assert len(np.unique(lots(keys, 1))) == len(keys)
    drawn = [set(np.argsort(lots(keys, seed))[:200].tolist()) for seed in (1, 2)]
    assert len(drawn[0] & drawn[1]) < 60, "two seeds draw the same"


@given(st.sets(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 9), st.data())
def test_the_last_drawn_is_that_of_a_sort(numbers, width, data):
    count = data.draw(st.integers(1, len(numbers)))
    blocks = np.array_split(np.array(list(numbers), dtype=np.uint64), width)
    assert last_drawn(lambda: blocks, count) == sorted(numbers)[count - 1]


@pytest.mark.parametrize("most", [1, 2])
def test_lots_next_to_each_other_are_told_apart(most):
    blocks = [np.array([2**63 + 1, 2**63], dtype=np.uint64)]
    assert last_drawn(lambda: blocks, most) == 2**63 + most - 1
