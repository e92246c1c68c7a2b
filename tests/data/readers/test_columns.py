"""Columns by their names: positives, negatives, and scores that no layout may ignore."""

import json

import pytest

from stillroom.data.readers.columns import column_kind
from stillroom.data.readers.files import detect_file_kind, read_pairs
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.errors import UserError
from support.row_files import FILE_NAMES, write_rows

TEXT = [{"docid": "1", "title": "", "text": "p"}]
LAYOUTS = {
    "plain": {"query": "q", "positive": "p"},
    "passage": {"query": "q", "passage": "p"},
    "negative": {"query": "q", "positive": "p", "negative": "n"},
    "negatives": {"query": "q", "passage": "p", "negatives": ["n", "m"]},
    "anchor": {"anchor": "q", "positive": "p"},
    "tuple": {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
    "sentences": {"sentence1": "q", "sentence2": "p"},
    "question": {"question": "q", "answer": "p"},
    "document": {"question": "q", "document": "p"},
    "flag-embedding": {"query": "q", "pos": ["p"], "neg": ["n"]},
    "tevatron": {"query": "q", "positive_passages": TEXT, "negative_passages": []},
    "gritlm": {"query": ["do", "q"], "pos": [["", "p"]], "neg": [["", "n"]]},
    "medi": {"query": ["do", "q"], "pos": ["", "p"], "neg": ["", "n"]},
}
SCORES = ["label", "score", "similarity_score", "relevance", "gold_label", "is_relevant", "Rating"]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_labelled_0_is_asked_for_or_left_out_in_every_layout(tmp_path, layout, name):
    row = LAYOUTS[layout]
    file = write(tmp_path / "a.jsonl", {**row, name: 1}, {**row, name: 0})
    with pytest.raises(UserError, match=f"has a score in '{name}'.* Set min_score"):
        list(read_pairs(file))
    with pytest.raises(UserError, match="Set min_score"):  # nor is it a bad row to skip
        list(read_pairs(file, skipped=SkippedRows(skip_bad_rows=True)))
    skipped = SkippedRows()
    [pair] = read_pairs(file, min_score=1, skipped=skipped)
    assert (pair.query, pair.passage) == ("q", "p")
    assert skipped.counts == {"below_min_score": 1}


@pytest.mark.parametrize("file_name", FILE_NAMES)
@pytest.mark.parametrize("low", [-1, 0, 0.5, "false"])
def test_labels_of_any_scale_are_read_from_every_format(tmp_path, file_name, low):
    high = "true" if low == "false" else 1
    rows = [{"query": "q", "passage": f"p{label}", "label": label} for label in (high, low)]
    file = write_rows(tmp_path / file_name, rows)
    assert list(read_pairs(file, min_score=1)) == [Pair("q", f"p{high}")]


@pytest.mark.parametrize("value", ["irrelevant", None, float("nan"), "", [0.1, 0.2]])
def test_a_score_that_is_no_number_is_an_error_and_never_a_pair(tmp_path, value):
    file = write(tmp_path / "a.jsonl", {"query": "q", "passage": "p", "label": value})
    with pytest.raises(UserError, match="'label'|'passage'"):
        list(read_pairs(file, min_score=0))


def test_a_minimum_score_for_rows_without_a_score_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", {"query": "q", "passage": "p", "stars": 1})
    with pytest.raises(UserError, match="has no score, and a minimum score is set"):
        list(read_pairs(file, min_score=4))
    assert not list(read_pairs(file, min_score=4, score_field="stars"))
    assert list(read_pairs(file, min_score=1, score_field="stars")) == [Pair("q", "p")]


def test_of_several_scores_one_must_be_named(tmp_path):
    file = write(tmp_path / "a.jsonl", {"query": "q", "passage": "p", "label": 0, "score": 0.9})
    with pytest.raises(UserError, match="several scores: 'label', 'score'. Set score_field"):
        list(read_pairs(file, min_score=0.5))
    assert list(read_pairs(file, min_score=0.5, score_field="score")) == [Pair("q", "p")]


@pytest.mark.parametrize(
    ("row", "min_score", "passages"),
    [
        ({"scores": [0.9, 0.1]}, None, ["p"]),  # mine_hard_negatives with output_scores
        ({"scores": [0.9, 0.1]}, 0.95, []),
        ({"label": 0.4}, None, ["p"]),  # a margin, as for MarginMSELoss
        ({"label": 0.4}, 0.5, []),
        ({"label": [0.4]}, None, ["p"]),
        ({"pos_score": 9, "neg_score": 2}, None, ["p"]),
        ({"pos_score": 9, "neg_score": 2}, 9.5, []),
    ],
)
def test_distillation_scores_beside_a_negative_are_no_labels(tmp_path, row, min_score, passages):
    row = {"query": "q", "positive": "p", "negative": "n", **row}
    pairs = list(read_pairs(write(tmp_path / "a.jsonl", row), min_score=min_score))
    assert pairs == [Pair("q", passage, ("n",)) for passage in passages]


def test_lists_of_texts_with_labels_are_positives_and_negatives_of_one_query(tmp_path):
    # What mine_hard_negatives writes as labeled-list.
    row = {"query": "q", "answer": ["one", "no", "two"], "labels": [1, 0, 1]}
    pairs = [Pair("q", text, ("no",)) for text in ("one", "two")]
    for file_name in FILE_NAMES:
        assert list(read_pairs(write_rows(tmp_path / file_name, [row]))) == pairs
    scored = {"query": "q", "answer": ["one", "no"], "scores": [0.9, 0.2]}
    file = write(tmp_path / "b.jsonl", scored)
    with pytest.raises(UserError, match="Set min_score"):
        list(read_pairs(file))
    assert list(read_pairs(file, min_score=0.5)) == [Pair("q", "one")]


NEGATIVES = [
    {"negative_1": "n", "negative_2": "m"},
    {"negative1": "n", "negative2": "m"},
    {"neg_1": "n", "neg_2": "m"},
    {"hard_negative_1": "n", "hard_negatives": ["m"]},
    {"neg": ["n", "m"]},
    {"negatives": ["n", "m"]},
    {"hard_negatives": ["n"], "negative": "m"},
    {"negative_passage": "n", "negative_2": "m", "negative_3": None},
    {"negative": "n", "negatives": ["m"], "negative_source": "bm25"},
    {"negative": "n", "negative.1": "m", "num_negatives": 2},  # as pandas writes it
    {"negative-1": "n", "Negative 2": "m"},
    {"negativePassages": ["n"], "bm25_negatives": ["m"]},
]


@pytest.mark.parametrize("file_name", FILE_NAMES)
@pytest.mark.parametrize("query", ["query", "anchor", "question", "sentence1"])
def test_negatives_are_kept_under_every_usual_name_beside_every_query(tmp_path, file_name, query):
    for number, negatives in enumerate(NEGATIVES):
        (tmp_path / str(number)).mkdir()
        file = write_rows(
            tmp_path / str(number) / file_name, [{query: "q", "positive": "p", **negatives}]
        )
        assert list(read_pairs(file)) == [Pair("q", "p", ("n", "m"))], negatives
        assert detect_file_kind(str(file))[1] == "pairs"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"negatives": ["a", None]}, "item 2 of 'negatives' is null"),
        ({"negatives": ["a", 3]}, "item 2 of 'negatives' is of type int"),
        ({"negatives": "plain text"}, "'negatives' is not a JSON list"),
        ({"negative": 0.31}, "'negative' is of type float"),
        ({"positive": None}, "'positive' is null"),
        ({"positive": ["a", None]}, "item 2 of 'positive' is null"),
        ({"query": ["a", "b"], "positive": ["c", "d"]}, "'query' is of type list"),
        ({"query": {"0": "a"}}, "'query' is of type dict"),
        ({"question": "another"}, "has several queries: 'query', 'question'"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place(tmp_path, row, problem):
    file = write(tmp_path / "a.jsonl", {"query": "q", "positive": "p", **row})
    with pytest.raises(UserError, match=problem):
        list(read_pairs(file))


def test_by_position_neither_a_number_nor_a_header_of_texts_becomes_a_text(tmp_path):
    (tmp_path / "a.csv").write_text("Frage,Antwort,Sterne\nq,p,0.8\n")
    with pytest.raises(UserError, match=r"has the number 0\.8 in 'Sterne'"):
        list(read_pairs(tmp_path / "a.csv", layout="sentence-transformers"))
    read = read_pairs(tmp_path / "a.csv", layout="sentence-transformers", score_field="Sterne",
                      min_score=0)  # fmt: skip
    assert list(read) == [Pair("q", "p")]
    (tmp_path / "b.csv").write_text("how do I sort a long list,use sorted\nq,p\n")
    with pytest.raises(UserError, match="which is a text"):
        list(read_pairs(tmp_path / "b.csv", layout="sentence-transformers"))
    (tmp_path / "c.tsv").write_text("a man is eating\tsomeone eats a meal\t4.5\n")
    with pytest.raises(UserError, match="has no header, and the number 4.5"):
        list(read_pairs(tmp_path / "c.tsv"))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("score", "score label Labels relevance sim is_duplicate goldLabel bm25_score score2"),
        ("positive score", "pos_scores positive_score score_pos"),
        ("negative score", "neg_scores score_neg hard_negative_scores"),
        ("negative", "neg negative Negative negatives_3 hard_neg negative_document_1 hardNegs"),
        ("negative", "negative-1 negative.1 neg1_text hard-negatives random_negative"),
        ("positive", "pos positive positives positive_2 positive-2 positive.1"),
        ("other", "query title negative_source negative_ids positive_ctxs label_source text2 Ω"),
        ("other", "num_negatives negative_count query_negative positive_negative false_negatives"),
    ],
)
def test_a_column_is_what_its_name_says(kind, names):
    assert {name: column_kind(name) for name in names.split()} == dict.fromkeys(names.split(), kind)
