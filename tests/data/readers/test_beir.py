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
