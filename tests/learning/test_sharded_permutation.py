"""Orders by shards: each row once, a few shards at a time, and otherwise random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stillroom.learning import sharded_permutation
from stillroom.learning.permutation import SHUFFLED_ROWS
from stillroom.learning.sharded_permutation import ShardedPermutation

SHARD = 8


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_permutation, "SHARD_ROWS", SHARD)
        yield


@given(n=st.integers(1, 300), block=st.integers(SHARD, 90), seed=st.integers(0, 9))
def test_each_row_has_one_position_and_a_block_reads_few_shards(n, block, seed):
    rows = ShardedPermutation(n, (seed, 1), block)[np.arange(n)]
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    for start in range(0, n, block):
        shards = np.unique(rows[start : start + block] // SHARD)
        assert len(shards) <= -(-block // SHARD) + 2  # one or two are shared, and one may be short


@given(n=st.integers(1, 300), block=st.integers(SHARD, 90), data=st.data())
def test_a_position_s_row_does_not_depend_on_other_positions(n, block, data):
    order = ShardedPermutation(n, (3, n), block)
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    np.testing.assert_array_equal(
        ShardedPermutation(n, (3, n), block)[positions], order[np.arange(n)][positions]
    )


def test_a_position_of_a_billion_rows_is_found_without_making_a_list_of_them():
    order = ShardedPermutation(1_000_000_000, (5,), 4 * SHUFFLED_ROWS)
    rows = order[np.array([0, 999_999_999, 123_456_789])]
    assert (rows >= 0).all() and (rows < 1_000_000_000).all() and len({*rows.tolist()}) == 3


def test_a_position_gets_every_row_alike_over_the_keys_and_its_neighbour_a_row_of_the_block():
    n, keys = 100, 6000  # the last shard is shorter than the others
    rows = np.array(
        [ShardedPermutation(n, (seed, 9), 3 * SHARD)[np.array([0, 1, 60])] for seed in range(keys)]
    )
    for at_position in rows.T:
        assert stats.chisquare(np.bincount(at_position, minlength=n)).pvalue > 1e-3
    same_shard = (rows[:, 0] // SHARD == rows[:, 1] // SHARD).mean()
    # Of the 23 other rows of a block about 7 are of the same shard: of 99 rows it would be .07.
    assert same_shard == pytest.approx(7 / 23, abs=0.03)


def test_epochs_have_other_blocks_and_other_orders_within_them():
    n = 40 * SHARD
    first, second = (
        ShardedPermutation(n, (1, epoch), 4 * SHARD)[np.arange(n)] for epoch in range(2)
    )
    blocks = [{frozenset(rows.tolist()) for rows in np.split(e, 10)} for e in (first, second)]
    assert len(blocks[0] & blocks[1]) == 0
