import pytest

from stillroom.serving.replica.batch_planning import choose_batch, choose_request, split_threads


def test_the_next_forward_serves_the_oldest_request_or_the_one_with_the_fewest_texts_left():
    texts_left = {3: 10, 5: 1, 8: 4}  # oldest first
    assert choose_request(texts_left, oldest=True) == 3
    assert choose_request(texts_left, oldest=False) == 5


@pytest.mark.parametrize(
    ("lengths", "anchor", "budget", "slice_"),
    [
        ([10], 0, 100, (0, 1)),
        ([500], 0, 100, (0, 1)),  # longer than the budget: alone, but served
        ([10] * 20, 0, 100, (0, 10)),
        ([10] * 20, 19, 100, (10, 20)),
        ([8, 9, 10, 10, 10], 4, 1000, (0, 5)),
        ([10, 10, 100, 100], 3, 400, (2, 4)),  # 10s would be nine tenths padding
        ([1, 2, 6], 2, 400, (0, 3)),  # so small that padding costs less than a launch
        ([50, 100], 0, 100, (0, 1)),
    ],
)
def test_a_forward_stays_within_its_budget_and_takes_texts_of_similar_length(
    lengths, anchor, budget, slice_
):
    assert choose_batch([(n,) for n in lengths], anchor, budget, budget / 8) == slice_


@pytest.mark.parametrize(
    ("lengths", "anchor", "budget", "slice_"),
    [
        ([10, 10, 100, 100], 3, 400, (0, 4)),
        ([10, 20, 30, 40], 0, 60, (0, 3)),
        ([10, 20, 30, 40], 3, 60, (3, 4)),
        ([500], 0, 100, (0, 1)),
    ],
)
def test_a_forward_without_padding_takes_texts_of_any_length(lengths, anchor, budget, slice_):
    assert choose_batch([(n,) for n in lengths], anchor, budget, 0, packed=True) == slice_


@pytest.mark.parametrize(
    ("texts", "tokens", "free_threads", "threads_and_budget"),
    [
        (1, 500, 4, (4, 500)),  # one text cannot be divided
        (2, 300, 4, (2, 150)),
        (40, 800, 4, (1, 200)),
        (40, 8000, 4, (1, 1024)),
        (40, 800, 1, (1, 800)),
        (12, 100, 4, (4, 100)),  # too little for two
        (20, 200, 4, (1, 67)),
    ],
)
def test_threads_are_split_into_as_many_forwards_as_there_is_work_for(
    texts, tokens, free_threads, threads_and_budget
):
    assert split_threads(texts, tokens, free_threads, 1024) == threads_and_budget
