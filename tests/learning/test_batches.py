"""The order of rows, and the batches that it gives."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.tokens.batch import IGNORE_INDEX
from stillroom.learning import sharded_permutation
from stillroom.learning.batches import PairBatches, PairData, mask_tokens, sample_negatives
from stillroom.learning.order import BatchOrder, WorkerShard
from stillroom.learning.prefetch import Prefetcher
from stillroom.learning.source_runs import SourceRuns

THIRTY_AND_SIXTY = SourceRuns.of(np.repeat([0, 1], [30, 60]))


def single_source(rows, batch, **options):
    return BatchOrder(SourceRuns.single(rows), seed=3, global_batch=batch, **options)


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_permutation, "SHARD_ROWS", 4)
        yield


orders = st.builds(
    lambda sizes, one_source, by_length, block: BatchOrder(
        SourceRuns.of(np.repeat(np.arange(len(sizes)), sizes)),
        seed=3,
        global_batch=8,
        one_source=one_source,
        lengths=np.arange(sum(sizes)) % 7 if by_length else None,
        shuffle_block_size=block,
    ),
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=3),
    one_source=st.booleans(),
    by_length=st.booleans(),
    block=st.sampled_from([None, 4, 13]),
)


@given(order=orders, world=st.sampled_from([2, 4, 8]), step=st.integers(0, 40))
@pytest.mark.promise("gradients")
def test_workers_share_the_batch_that_one_worker_takes(order, world, step):
    shared = [order.rows_at(step, WorkerShard(rank, world)) for rank in range(world)]
    assert sorted(np.concatenate(shared)) == sorted(order.rows_at(step))
    assert {len(part) for part in shared} == {8 // world}


@given(order=orders, steps=st.lists(st.integers(0, 30), min_size=1, max_size=5))
@pytest.mark.promise("resume")
def test_a_step_s_rows_do_not_depend_on_earlier_calls(order, steps):
    fresh = dataclasses.replace(order, _permutations={}, _windows={})
    for step in steps:
        order.rows_at(step)
    assert list(order.rows_at(steps[0])) == list(fresh.rows_at(steps[0]))


@pytest.mark.parametrize("block", [None, 8])
def test_an_epoch_takes_every_row_at_most_once_and_the_next_in_another_order(block):
    order = single_source(20, 6, shuffle_block_size=block)
    epoch = [order.rows_at(step) for step in range(6)]
    first, second = np.concatenate(epoch[:3]), np.concatenate(epoch[3:])
    assert len(set(first)) == len(first) == 18
    assert len(set(second)) == 18
    assert list(first) != list(second)


def test_a_batch_of_one_source_has_no_row_of_another():
    order = BatchOrder(THIRTY_AND_SIXTY, seed=1, global_batch=10)
    sources = [set(order.source[order.rows_at(step)]) for step in range(60)]
    assert {len(batch_sources) for batch_sources in sources} == {1}
    assert 10 <= sum(batch_sources == {0} for batch_sources in sources) <= 30  # a third, by size


@pytest.mark.parametrize("one_source", [True, False])
def test_weights_decide_how_often_a_source_is_drawn(one_source):
    order = BatchOrder(
        THIRTY_AND_SIXTY, seed=1, global_batch=10, weights=(3, 1), one_source=one_source
    )
    sampled_sources = np.concatenate([order.source[order.rows_at(step)] for step in range(200)])
    assert 0.68 < (sampled_sources == 0).mean() < 0.82


@pytest.mark.parametrize(("temperature", "share"), [(1, 1 / 17), (2, 1 / 5), (4, 1 / 3)])
def test_a_higher_temperature_draws_small_sources_more_often(temperature, share):
    sources = SourceRuns.of(np.repeat([0, 2], [10, 160]))
    order = BatchOrder(sources, seed=1, global_batch=10, temperature=temperature)
    np.testing.assert_allclose(order.shares, [share, 0, 1 - share])


def test_mixed_batches_still_read_each_source_in_whole_epochs():
    order = BatchOrder(THIRTY_AND_SIXTY, seed=1, global_batch=10, one_source=False)
    sampled_rows = np.concatenate([order.rows_at(step) for step in range(100)])
    for rows in (np.arange(30), np.arange(30, 90)):
        rows_of_source = sampled_rows[np.isin(sampled_rows, rows)]
        epochs = len(rows_of_source) // len(rows)
        counts = np.bincount(rows_of_source[: epochs * len(rows)], minlength=90)[rows]
        assert set(counts) == {epochs}


def test_a_source_smaller_than_a_batch_is_repeated():
    assert sorted(single_source(3, 6).rows_at(0)) == [0, 0, 1, 1, 2, 2]


def test_batches_by_length_have_similar_lengths_and_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 500, 320)
    by_length, plain = single_source(320, 8, lengths=lengths), single_source(320, 8)

    def spread(order):
        return np.mean([np.ptp(lengths[order.rows_at(step)]) for step in range(40)])

    assert spread(by_length) < spread(plain) / 5
    assert sorted(np.concatenate([by_length.rows_at(step) for step in range(40)])) == list(
        range(320)
    )


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_only_masked_tokens_are_predicted_each_by_the_state_before_it(share):
    ids = list(range(100, 140))
    cloze = mask_tokens(ids, 7, share, np.random.default_rng(0))
    masked = [position for position, token in enumerate(cloze.ids) if token == 7]
    assert masked and 0 not in masked
    for position, target in enumerate(cloze.labels):
        assert target == (ids[position + 1] if position + 1 in masked else IGNORE_INDEX)
    unmasked = [position for position in range(40) if position not in masked]
    assert [cloze.ids[position] for position in unmasked] == [
        ids[position] for position in unmasked
    ]


def test_a_source_s_prompts_replace_the_model_s_prompts(decoder):
    from stillroom.encoders.contract import Prompts

    encoder = create_encoder(
        str(decoder),
        space="s",
        options=ContractOptions(pooling="mean", prompts={"query": "own: ", "passage": ""}),
    )
    data = PairData(
        queries=["first", "second"],
        passages=["one", "two"],
        positive=np.arange(2),
        source=SourceRuns.of(np.array([0, 1])),
        prompts=(None, Prompts(query="task: ", passage="doc: ")),
        symmetric=(False, True),
    )
    order = BatchOrder(data.source, seed=0, global_batch=2, one_source=False, weights=(1, 1))
    step = next(s for s in range(20) if set(order.rows_at(s)) == {0, 1})
    rows = list(order.rows_at(step))
    batch = PairBatches(data, order, encoder.prompter, 0, 16, 16)(step)
    texts = encoder.tokenizer.batch_decode([tokens.ids[1:] for tokens in batch.queries])
    assert [texts[rows.index(row)] for row in (0, 1)] == ["own: first", "task: second"]
    texts = encoder.tokenizer.batch_decode([tokens.ids[1:] for tokens in batch.passages])
    assert [texts[rows.index(row)] for row in (0, 1)] == ["one", "doc: two"]


@pytest.mark.promise("resume")
def test_prefetched_batches_are_the_same_from_any_first_step():
    prefetcher = Prefetcher(lambda step: step * step, steps=9)
    assert [prefetcher(step) for step in range(4, 9)] == [step * step for step in range(4, 9)]


@pytest.mark.parametrize("count", [1, 3])
def test_sampled_negatives_are_the_pair_s_own_and_do_not_depend_on_the_worker(count):
    negatives = np.arange(40).reshape(10, 4)
    sampled = sample_negatives(negatives, np.arange(10), count, 99, seed=5, step=2).reshape(
        10, count
    )
    for row in range(10):
        assert set(sampled[row]) <= set(negatives[row])
        assert len(set(sampled[row])) == count
    half = sample_negatives(negatives, np.arange(1, 10, 2), count, 99, seed=5, step=2)
    assert list(half) == list(sampled[1::2].reshape(-1))


def test_a_pair_with_too_few_negatives_gets_random_passages_too():
    negatives = np.array([[7, -1, -1]])
    sampled = sample_negatives(negatives, np.array([0]), 3, 10, seed=0, step=0)
    assert len(sampled) == 3
    assert 7 in sampled
    assert all(0 <= row < 10 for row in sampled)
