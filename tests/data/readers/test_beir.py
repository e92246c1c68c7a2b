"""Evaluation sets in BEIR layout."""

import pytest

from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.errors import UserError


def beir(folder, *, corpus=None, queries=None, qrels=None):
    rows = {
        "corpus.jsonl": corpus
        or '{"_id": "p1", "title": "T", "text": "one"}\n{"_id": "p2", "title": "", "text": ""}\n',
        "queries.jsonl": queries or '{"_id": "q1", "text": "who?"}\n{"_id": "q2", "text": "x"}\n',
        "qrels/test.tsv": qrels or "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp2\t0\n",
    }
    (folder / "qrels").mkdir()
    for name, text in rows.items():
        (folder / name).write_text(text)
    return folder


def test_a_set_is_read_with_titles_and_only_its_judged_queries_count(tmp_path):
    evaluation_set = read_beir(beir(tmp_path))
    assert evaluation_set.passages == {"p1": "T one", "p2": ""}
    assert evaluation_set.qrels == {"q1": {"p1": 2, "p2": 0}}


def test_a_written_set_is_read_back(tmp_path):
    evaluation_set = EvaluationSet(
        {"p": 'a "b"\n\tc'}, {"q": "ä"}, {"q": {"p": 1}}, {"query": "ö: "}
    )
    write_beir(evaluation_set, tmp_path)
    assert read_beir(tmp_path) == evaluation_set


@pytest.mark.parametrize("content", ["{", "[]", '{"document": "x"}', '{"query": 1}'])
def test_invalid_prompts_are_an_error(tmp_path, content):
    folder = beir(tmp_path)
    (folder / "prompts.json").write_text(content)
    with pytest.raises(UserError, match="prompts.json"):
        read_beir(folder)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"qrels": "query-id\tcorpus-id\tscore\nq9\tp1\t1\n"}, "test.tsv:2: judges the query 'q9'"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\tp9\t1\n"}, "judges the passage 'p9'"),
        (
            {"qrels": "query-id\tcorpus-id\tscore\nq1\tp1\thigh\n"},
            "test.tsv:2: 'score' is 'high', which is not",
        ),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\tp1\t0\n"}, "no query with a relevant passage"),
        ({"corpus": '{"_id": "p1", "text": "a"}\n' * 2}, "corpus.jsonl:2: repeats the id 'p1'"),
        ({"queries": '{"text": "a"}\n'}, "queries.jsonl:1: has no '_id'"),
    ],
)
def test_an_invalid_set_is_an_error(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        read_beir(beir(tmp_path, **files))


def test_a_folder_without_a_set_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.jsonl: does not exist"):
        read_beir(tmp_path)


HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\tp1\t2\nq1\tp2\t0\n",  # without a header
        "q1 0 p1 2\nq1 0 p2 0\n",  # as TREC
        "q1\tQ0\tp1\t2\r\nq1\tQ0\tp2\t0\r\n",
        HEADER + "q1\tp1\t2.0\nq1\tp2\t0.0\n",
        HEADER + "q1\tp1\t2\nq1\tp2\t0\nq1\tp1\t2\n",  # judged twice, alike
        HEADER + '"q1"\t"p1"\t"2"\n"q1"\t"p2"\t0\n',
        "corpus_id\tquery_id\trelevance\np1\tq1\t2\np2\tq1\t0\n",
        "qid\titer\tdocno\trel\nq1\t0\tp1\t2\nq1\t0\tp2\t0\n",
    ],
)
def test_judgements_are_read_as_every_tool_writes_them(tmp_path, qrels):
    assert read_beir(beir(tmp_path, qrels=qrels)).qrels == {"q1": {"p1": 2, "p2": 0}}


def test_judged_passages_that_do_not_exist_are_kept_apart_and_counted(tmp_path):
    folder = beir(tmp_path, qrels=HEADER + "q1\tp1\t1\nq1\tp9\t1\nq2\tp8\t1\n")
    evaluation_set = read_beir(folder)
    assert evaluation_set.qrels == {"q1": {"p1": 1}, "q2": {}}
    assert evaluation_set.missing == {"q1": {"p9": 1}, "q2": {"p8": 1}}
    assert evaluation_set.counts() == {"queries": 2, "passages": 2, "missing": 2}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"corpus": '{"_id": null, "text": "a"}\n'}, "corpus.jsonl:1: '_id' is null"),
        ({"corpus": '{"_id": ["a"], "text": "a"}\n'}, "'_id' is of type list"),
        ({"corpus": '{"_id": "p1", "title": "\\ud83d", "text": "a"}\n'}, "half of a surrogate"),
        ({"queries": '{"_id": "q1", "text": null}\n'}, "queries.jsonl:1: 'text' is null"),
        ({"qrels": HEADER + "q1\tp1\t1\nq1\tp1\t2\n"}, "test.tsv:3: judges 'p1' for 'q1' as 2"),
        ({"qrels": HEADER + "q1\tp1\t0.5\n"}, "test.tsv:2: has the score 0.5"),
        ({"qrels": HEADER + "q1\tp1\tnan\n"}, "'score' is 'nan', which is not a number"),
        ({"qrels": "query-id\tcorpus-id\nq1\tp1\n"}, "test.tsv:1: has no 'score'"),
        ({"qrels": "q1\tp1\n"}, "test.tsv:1: has 2 fields"),
    ],
)
def test_ids_and_grades_are_never_guessed(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        read_beir(beir(tmp_path, **files))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ('"title": "T", "text": ""', "T"),
        ('"title": "T", "text": " "', "T"),
        ('"title": "T", "text": null', "T"),
        ('"title": null, "text": "one"', "one"),
        ('"title": " ", "text": " "', ""),
    ],
)
def test_a_blank_text_with_a_title_is_the_title(tmp_path, row, text):
    corpus = f'{{"_id": "p1", "text": "one"}}\n{{"_id": "p2", {row}}}\n'
    assert read_beir(beir(tmp_path, corpus=corpus)).passages["p2"] == text
