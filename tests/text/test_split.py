import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import UserError
from stillroom.text.dedupe import dedupe_pairs, near_key, text_key
from stillroom.text.formats import Pair
from stillroom.text.split import split

OPENING = "The same opening words are shared by every one of the versions of this passage, " * 2


def pairs(count, copies=0):
    alone = [Pair(f"query {i}", f"passage {i}") for i in range(count)]
    return alone + [Pair(f"near {i}", f"{OPENING} version {i}") for i in range(copies)]


@given(seed=st.integers(0, 10**6), copies=st.integers(0, 12))
def test_near_copies_never_stand_on_both_sides(seed, copies):
    found = split(pairs(30, copies), seed=seed, held_out_queries=4, held_out_passages=12)
    tested = {near_key(text) for text in found.evaluation.passages.values()}
    trained = {near_key(pair.passage) for pair in found.train}
    assert not tested & trained
    assert len(found.evaluation.passages) == len(tested) == 12


def test_every_query_has_its_own_passage_and_no_other():
    found = split(pairs(30), seed=1, held_out_queries=5, held_out_passages=9)
    answers = {pair.query: pair.passage for pair in pairs(30)}
    assert len(found.train) == 21
    for query, grades in found.evaluation.qrels.items():
        [(passage, grade)] = grades.items()
        assert grade == 1
        assert found.evaluation.passages[passage] == answers[found.evaluation.queries[query]]


def test_a_split_is_decided_by_its_seed():
    arguments = {"held_out_queries": 3, "held_out_passages": 9}
    assert split(pairs(30), seed=1, **arguments) == split(pairs(30), seed=1, **arguments)
    assert split(pairs(30), seed=1, **arguments) != split(pairs(30), seed=2, **arguments)


def test_too_few_pairs_are_counted():
    with pytest.raises(UserError, match="of 12 pairs 9 have distinct passages"):
        split(pairs(8, 4), seed=0, held_out_queries=1, held_out_passages=9)


def test_duplicates_are_dropped_and_counted_whatever_their_spelling():
    pairs = [
        Pair("q", "p"),
        Pair("other", "  P "),
        Pair("Q", "new"),
        Pair("same", "ＳＡＭＥ"),  # full-width letters
        Pair("last", "one"),
    ]
    found, counts = dedupe_pairs({"own": pairs})
    assert found == {"own": [Pair("q", "p"), Pair("last", "one")]}
    assert counts["own"] == {
        "read": 5,
        "repeated_passages": 1,
        "repeated_queries": 1,
        "query_is_passage": 1,
    }
    assert text_key("a  B\n") == text_key("A b")


def test_what_two_sources_share_stays_in_the_first():
    first = [Pair("q", "p"), Pair("r", "s")]
    second = [Pair("new", "P"), Pair("R", "other"), Pair("a", "b")]
    found, counts = dedupe_pairs({"first": first, "second": second})
    assert found == {"first": first, "second": [Pair("a", "b")]}
    assert (counts["first"]["repeated_passages"], counts["second"]["repeated_passages"]) == (0, 1)
    assert (counts["first"]["repeated_queries"], counts["second"]["repeated_queries"]) == (0, 1)
