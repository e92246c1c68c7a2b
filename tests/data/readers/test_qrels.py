"""Judgements and triples that name queries and passages by id."""

import pytest

from stillroom.data.readers.qrels import read_collection, read_id_triples, read_judged_pairs
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.errors import UserError

COLLECTION = "1\tone\n2\ttwo\n3\t\n4\tfour\n"
QUERIES = "a\twhat is one\nb\twhat is two\n"
JSONL = "".join(
    f'{{"_id": {own_id}, "title": "{title}", "text": "{text}"}}\n'
    for own_id, title, text in [(1, "", "one"), (2, "", "two"), (3, "", ""), (4, "", "four")]
)
PAIRS = [Pair("what is one", "one", ("two", "four")), Pair("what is two", "two"),
         Pair("what is two", "four")]  # fmt: skip
QRELS = {
    "trec": "a 0 2 0\na 0 1 1\na 0 4 0\nb 0 2 1\nb 0 4 2\n",
    "msmarco": "a\t0\t2\t0\na\t0\t1\t1\na\t0\t4\t0\nb\t0\t2\t1\nb\t0\t4\t2\n",
    "beir": "query-id\tcorpus-id\tscore\na\t2\t0\na\t1\t1\na\t4\t0\nb\t2\t1\nb\t4\t2\n",
}


@pytest.fixture
def judged(tmp_path):
    def files(**contents):
        files_to_write = {"collection": COLLECTION, "queries": QUERIES, **contents}
        paths = {}
        for name, content in files_to_write.items():
            form = "jsonl" if content.startswith("{") else "tsv"
            (tmp_path / f"{name}.{form}").write_text(content)
            paths[name] = str(tmp_path / f"{name}.{form}")
        return paths

    return files


@pytest.mark.parametrize("collection", [COLLECTION, JSONL], ids=["tsv", "jsonl"])
@pytest.mark.parametrize("form", QRELS)
def test_every_relevant_passage_makes_a_pair_with_passages_graded_0_as_negatives(
    judged, form, collection
):
    assert list(read_judged_pairs(**judged(qrels=QRELS[form], collection=collection))) == PAIRS


def test_triples_of_ids_become_triples_of_texts(judged):
    assert list(read_id_triples(**judged(triples="a\t1\t2\nb\t2\t1\n"))) == [
        Pair("what is one", "one", ("two",)),
        Pair("what is two", "two", ("one",)),
    ]


def test_empty_texts_of_a_collection_are_skipped(judged):
    skipped = SkippedRows()
    paths = judged(qrels="a 0 3 1\na 0 1 1\n")
    assert list(read_judged_pairs(**paths, skipped=skipped)) == [Pair("what is one", "one")]
    assert list(read_collection(paths["collection"], skipped)) == ["one", "two", "four"]
    assert skipped.counts == {"empty": 2}


@pytest.mark.parametrize(
    ("contents", "where", "problem"),
    [
        ({"qrels": "a 0 1 1\nc 0 1 1\n"}, "qrels.tsv:2", "the query 'c', which does not exist"),
        ({"qrels": "a 0 1 1\na 0 9 1\n"}, "qrels.tsv:2", "the passage '9', which does not exist"),
        ({"qrels": "a 0 1 1\na 0 1 yes\n"}, "qrels.tsv:2", "'score' is 'yes', which is not"),
        ({"qrels": "a 0 1 1\na 1\n"}, "qrels.tsv:2", "has 2 fields"),
        ({"collection": "1\tone\n1\tother\n"}, "collection.tsv:2", "repeats the id '1'"),
        ({"collection": "1\tone\ntwo\n"}, "collection.tsv:2", "has 1 fields, not 2 (id, text)"),
        ({"collection": '{"_id": "1", "text": "one"}\n{"text": "x"}'}, "collection.jsonl:2",
         "has no '_id'"),
        ({"queries": "a\twhat is one\nb\t \n"}, "queries.tsv:2", "'text' is empty"),
    ],
)  # fmt: skip
def test_inconsistent_files_are_an_error_or_skipped(judged, tmp_path, contents, where, problem):
    paths = judged(**{"qrels": "a 0 1 1\n", **contents})
    with pytest.raises(UserError) as caught:
        list(read_judged_pairs(**paths))
    assert caught.value.where == f"{tmp_path}/{where}"
    assert problem in caught.value.problem
    skipped = SkippedRows(skip_bad_rows=True)
    assert list(read_judged_pairs(**paths, skipped=skipped)) == [Pair("what is one", "one")]
    assert [row["where"] for row in skipped.bad_rows] == [f"{tmp_path}/{where}"]


def test_judgements_need_no_order_and_repeated_or_useless_ones_are_counted(judged):
    skipped = SkippedRows()
    qrels = "a 0 1 1\nb 0 2 0\na 0 4 0\na 0 1 1.0\n"
    pairs = list(read_judged_pairs(**judged(qrels=qrels), skipped=skipped))
    assert pairs == [Pair("what is one", "one", ("four",))]
    assert skipped.counts == {"repeated": 1, "no_positive": 1}


def test_a_passage_with_two_grades_for_a_query_is_an_error(judged, tmp_path):
    paths = judged(qrels="a 0 1 1\nb 0 2 1\na 0 1 0\n")
    with pytest.raises(UserError, match=r"qrels\.tsv:3: judges '1' for 'a' as 0, and .*:1 judges"):
        list(read_judged_pairs(**paths))


def test_the_columns_of_a_header_may_have_any_order_and_ids_may_be_quoted(judged):
    qrels = 'corpus-id\tquery-id\tscore\n"1"\t"a"\t1\n"2"\t"b"\t1\n'
    pairs = list(read_judged_pairs(**judged(qrels=qrels)))
    assert pairs == [Pair("what is one", "one"), Pair("what is two", "two")]
