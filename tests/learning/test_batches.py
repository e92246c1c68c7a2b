import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.learning.batches import batch_ids, draw_negatives


@given(
    n=st.integers(8, 60),
    per_worker=st.integers(1, 4),
    world=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 40),
)
def test_workers_share_the_batch_that_one_would_take_alone(n, per_worker, world, step):
    batch = per_worker * world
    if batch > n:
        return
    alone = batch_ids(n, seed=3, step=step, global_batch=batch)
    shared = [
        batch_ids(n, seed=3, step=step, global_batch=batch, rank=rank, world=world)
        for rank in range(world)
    ]
    assert sorted(np.concatenate(shared)) == sorted(alone)
    assert {len(part) for part in shared} == {per_worker}


def test_an_epoch_takes_every_row_at_most_once_and_the_next_in_another_order():
    epoch = [batch_ids(20, seed=1, step=step, global_batch=6) for step in range(6)]
    first, second = np.concatenate(epoch[:3]), np.concatenate(epoch[3:])
    assert len(set(first)) == len(first) == 18
    assert len(set(second)) == 18
    assert list(first) != list(second)


@pytest.mark.parametrize("count", [1, 3])
def test_drawn_negatives_are_the_pair_s_own_and_do_not_depend_on_the_worker(count):
    own = np.arange(40).reshape(10, 4)
    everyone = draw_negatives(own, np.arange(10), count, 99, seed=5, step=2).reshape(10, count)
    for row in range(10):
        assert set(everyone[row]) <= set(own[row])
        assert len(set(everyone[row])) == count
    half = draw_negatives(own, np.arange(1, 10, 2), count, 99, seed=5, step=2)
    assert list(half) == list(everyone[1::2].reshape(-1))


def test_a_pair_with_too_few_negatives_is_filled_with_random_passages():
    own = np.array([[7, -1, -1]])
    drawn = draw_negatives(own, np.array([0]), 3, 10, seed=0, step=0)
    assert len(drawn) == 3
    assert 7 in drawn
    assert all(0 <= row < 10 for row in drawn)
