"""What is known of texts before mining, against plain loops over them."""

import numpy as np
import pytest

from stillroom.data.cleaning.splitmix import splitmix64
from stillroom.data.cleaning.text_keys import beginning_key, text_key
from stillroom.data.readers.records import EvaluationSet
from stillroom.mining import known_texts
from stillroom.mining.known_texts import (
    Answers,
    excluded_groups,
    hash_groups,
    hash_queries,
    write_known_texts,
)
from stillroom.storage.columns import Ragged
from support.peak_memory import peak_bytes

OPENING = "a long opening that many passages share, whatever they say in the end, " * 2
NONE = np.empty(0, dtype=np.int64)


def texts(count, queries, seed=0):
    """Passages and queries of few words, so that there are many copies of all kinds."""
    rng = np.random.default_rng(seed)
    passages = [
        f"{OPENING if number % 7 == 0 else ''}{word.upper() if number % 3 else word}"
        for number, word in enumerate(rng.choice([f"word {i}" for i in range(40)], count))
    ]
    asked = [str(word) for word in rng.choice([f"word  {i}" for i in range(30)], queries)]
    positive = np.sort(rng.integers(0, count, queries))
    provided = Ragged.of(
        [rng.integers(0, count, size).tolist() for size in rng.integers(0, 4, queries)]
    )
    return passages, asked, positive, provided


def in_parts(values, size):
    return (values[start : start + size] for start in range(0, len(values), size))


@pytest.fixture(params=[True, False], ids=["answers only", "all passages"])
def answers_only(request):
    return request.param


def test_copies_answers_and_evaluation_texts_are_those_of_a_plain_loop(
    tmp_path, monkeypatch, answers_only
):
    monkeypatch.setattr(known_texts, "SORTED_AT_ONCE", 32)  # several runs and ranges
    passages, queries, positive, provided = texts(200, 150)
    tested = EvaluationSet(
        {"a": "WORD 1", "b": "word 2", "c": "nowhere"}, {"q": "?"}, {"q": {"a": 1, "b": 0}}
    )
    known = write_known_texts(
        tmp_path,
        map(hash_groups, in_parts(passages, 30)),
        map(hash_queries, in_parts(queries, 40)),
        positive,
        provided,
        excluded=excluded_groups([tested], answers_only=answers_only),
        excluded_rows=np.array([5, 77]),
    )
    beginnings = [beginning_key(text) for text in passages]
    same = np.array([[one == other for other in beginnings] for one in beginnings])
    np.testing.assert_array_equal(known.group_p[:, None] == known.group_p, same)
    keys = [text_key(query) for query in queries]
    np.testing.assert_array_equal(
        known.query_text_q[:, None] == known.query_text_q,
        [[one == other for other in keys] for one in keys],
    )
    excluded = {"word 1"} if answers_only else {"word 1", "word 2", "nowhere"}
    np.testing.assert_array_equal(
        known.excluded_p,
        [row in (5, 77) or text in excluded for row, text in enumerate(beginnings)],
    )
    answers: dict[str, set[str]] = {}
    for query, key, row in zip(queries, keys, positive, strict=True):
        answers.setdefault(key, set()).update({beginnings[row], beginning_key(query)})
    assert known.answers.most == max(map(len, answers.values()))
    every_row = np.broadcast_to(np.arange(200), (150, 200))
    expected = [[text in answers[key] for text in beginnings] for key in keys]
    np.testing.assert_array_equal(known.is_answer(np.arange(150), every_row), expected)
    for count in (1, 3):
        given = known.provided_negatives(np.arange(20, 110), count)
        for query, rows in zip(range(20, 110), given, strict=True):
            usable: dict[str, int] = {}
            for row in provided[query].tolist():
                if beginnings[row] not in answers[keys[query]] and not known.excluded_p[row]:
                    usable.setdefault(beginnings[row], row)
            chosen = [*usable.values()][:count]
            assert rows.tolist() == chosen + [-1] * (count - len(chosen))


def test_no_answers_contain_nothing():
    none = Answers.of(NONE, NONE)
    assert none.most == 0
    assert not none.contain(np.array([1, 2]), np.array([[1], [2]])).any()


def test_memory_does_not_grow_with_the_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(known_texts, "SORTED_AT_ONCE", 8192)

    def peak(count):
        def windows():
            for start in range(0, count, 1000):
                hashes = splitmix64(np.arange(start, start + 1000, dtype=np.uint64))
                yield (hashes >> np.uint64(1)).astype(np.int64)

        positive = np.broadcast_to(np.int64(0), count)
        provided = Ragged(np.broadcast_to(np.int64(0), count + 1), NONE)
        hashes = (known_texts.QueryHashes(part, part) for part in windows())

        def write():
            known = write_known_texts(
                tmp_path / str(count), windows(), hashes, positive, provided,
                excluded=NONE, excluded_rows=NONE,
            )  # fmt: skip
            assert len(known.group_p) == count

        return peak_bytes(write)

    peak(2000)
    few, many = peak(20_000), peak(200_000)
    assert many < 1.3 * few, (few, many)
