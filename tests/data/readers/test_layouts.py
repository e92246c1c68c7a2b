"""Pair layouts of other tools, as those tools write them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.data.readers.files import (
    detect_file_kind,
    read_labelled_pairs,
    read_pairs,
    read_passages,
)
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TWO = [{"docid": "1", "title": "T", "text": "one"}, {"docid": "2", "title": "", "text": "two"}]
QUERY = {"query": "q", "prompt": "Find it", "type": "normal"}
KNOWN = {
    "st-pair": ("sentence-transformers", {"anchor": "q", "positive": "one"}, [("one", ())]),
    "st-answer": ("sentence-transformers", {"question": "q", "answer": "one"}, [("one", ())]),
    "st-triplet": (
        "sentence-transformers",
        {"anchor": "q", "positive": "one", "negative": "no", "dataset": "all-nli"},
        [("one", ("no",))],
    ),
    "st-tuple": (
        "sentence-transformers",
        {"anchor": "q", "positive": "one", "negative_1": "no", "negative_2": None,
         "negative_3": "x"},
        [("one", ("no", "x"))],
    ),
    "flag": (
        "flag-embedding",
        {**QUERY, "pos": ["one", "two"], "neg": ["no"], "pos_scores": [0.9, 0.1]},
        [("one", ("no",)), ("two", ("no",))],
    ),
    "flag-bare": ("flag-embedding", {"query": "q", "pos": ["one"], "neg": []}, [("one", ())]),
    "tevatron": (
        "tevatron",
        {"query_id": 7, "query": "q", "positive_passages": TWO, "negative_passages": TWO[1:]},
        [("T one", ("two",)), ("two", ("two",))],
    ),
    "gritlm": (
        "gritlm",
        {"query": ["Find it", "q"], "pos": [["", "one"], ["", "two"]], "neg": [["", "no"]]},
        [("one", ("no",)), ("two", ("no",))],
    ),
    "medi": (
        "gritlm",
        {"query": ["Find it", "q"], "pos": ["Read: ", "one"], "neg": ["", "no"], "task_id": 3},
        [("one", ("no",))],
    ),
    "llm2vec": (
        "llm2vec",
        {"query": "q", "positive": "one", "negative": "no"},
        [("one", ("no",))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("case", KNOWN)
def test_a_recognised_layout_and_a_named_one_give_the_same_pair_per_positive(tmp_path, case, form):
    layout, row, expected = KNOWN[case]
    file = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row, row]), file)
    elif form == "json":
        file.write_text(json.dumps([row, row], indent=1))
    else:
        write(file, [row, row])
    pairs = [Pair("q", passage, negatives) for passage, negatives in expected] * 2
    assert detect_file_kind(str(file)) == (layout, "pairs")
    assert list(read_pairs(file)) == list(read_pairs(file, layout=layout)) == pairs


def test_sentence_transformers_columns_go_by_position_when_the_layout_is_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("Frage,Antwort,falsch\nq,one,no\n")
    with pytest.raises(UserError, match=r"a\.csv:2: is not a pair in a known layout"):
        list(read_pairs(file))
    assert list(read_pairs(file, layout="sentence-transformers")) == [Pair("q", "one", ("no",))]


def test_scored_pairs_need_a_min_score(tmp_path):
    rows = [{"sentence1": f"a{s}", "sentence2": "b", "score": s} for s in (0.2, 0.8, 1.0)]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="Set min_score"):
        list(read_pairs(file))
    skipped = SkippedRows()
    pairs = list(read_pairs(file, min_score=0.8, skipped=skipped))
    assert pairs == [Pair("a0.8", "b"), Pair("a1.0", "b")]
    assert skipped.counts == {"below_min_score": 1}


def test_a_teacher_s_scores_filter_positives_only_with_a_min_score(tmp_path):
    file = write(tmp_path / "a.jsonl", [KNOWN["flag"][1]])
    assert [pair.passage for pair in read_pairs(file)] == ["one", "two"]
    assert [pair.passage for pair in read_pairs(file, min_score=0.5)] == ["one"]


@pytest.mark.parametrize("case", ["flag", "gritlm", "medi"])
def test_rows_can_be_filtered_by_their_instruction(tmp_path, case):
    file = write(tmp_path / "a.jsonl", [KNOWN[case][1]])
    assert {pair.instruction for _, pair in read_labelled_pairs(file)} == {"Find it"}
    skipped = SkippedRows()
    assert not list(read_pairs(file, instruction="Another", skipped=skipped))
    assert skipped.counts == {"other_instruction": len(KNOWN[case][2])}
    assert len(list(read_pairs(file, instruction="Find it"))) == len(KNOWN[case][2])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "pos": []}, "'pos' is empty"),
        ({"query": "q", "pos": "one"}, "'pos' is not a JSON list"),
        ({"query": "q", "pos": ["one", 2]}, "'pos' is of type int"),
        ({"query": "q", "pos": ["a"], "pos_scores": [1, 2]}, "1 texts in 'pos' and 2 in"),
        ({"query": "q", "pos": ["a"], "pos_scores": ["high"]}, "'high', which is not a number"),
        ({"query": ["i", "q"], "pos": [["", " "]]}, "'pos' is empty"),
        ({"query": ["i", "q", "x"], "pos": [["", "a"]]}, "'query' is not a pair of instruction"),
        ({"query": ["i", "q"], "pos": 3}, "'pos' is not a pair of instruction"),
        ({"query": ["i", "q"], "pos": [3]}, "'pos' is not a pair of instruction"),
        ({"query": "q", "positive_passages": []}, "'positive_passages' is empty"),
        ({"query": "q", "positive_passages": ["text"]}, "has items that are not objects"),
        ({"query": "q", "positive_passages": [{"docid": "1", "text": ""}]}, "an empty passage"),
        ({"query_text": "q", "positive_document_ids": ["1"]}, "names its passages by id"),
        ({"anchor": "a", "positive": ""}, "'positive' is empty"),
        ({"sentence1": "a", "sentence2": "b", "score": "?"}, "'?', which is not a number"),
        ({"query": "half \ud83d", "positive": "p"}, "half of a surrogate pair"),
        ({"a": "b"}, "is not a pair in a known layout; it has a"),
    ],
)
def test_a_row_that_is_not_of_its_layout_is_named_with_what_is_wrong(tmp_path, row, problem):
    with pytest.raises(UserError) as caught:
        list(read_pairs(write(tmp_path / "a.jsonl", [row])))
    assert caught.value.where == f"{tmp_path}/a.jsonl:1"
    assert problem in caught.value.problem


def test_bad_rows_can_be_skipped_and_are_then_counted_and_listed(tmp_path):
    good = json.dumps({"query": "q", "positive": "p"}).encode()
    wrong = [b"{", b"[]", b'{"query": 1, "positive": "p"}', b"\xff", b'{"query": "q"}']
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([*wrong, good, *wrong, good]))
    skipped = SkippedRows(skip_bad_rows=True)
    assert list(read_pairs(file, skipped=skipped)) == [Pair("q", "p")] * 2
    assert skipped.counts == {"wrong": 10}
    assert [row["where"].rpartition(":")[2] for row in skipped.bad_rows] == [
        "1", "2", "3", "4", "5", "7", "8", "9", "10", "11",
    ]  # fmt: skip
    assert skipped.bad_rows[1]["problem"] == "is not a JSON object"


def test_the_list_of_bad_rows_is_bounded(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{\n" * 500 + '{"query": "q", "positive": "p"}\n')
    skipped, total = SkippedRows(skip_bad_rows=True), SkippedRows()
    assert len(list(read_pairs(file, skipped=skipped))) == 1
    total.add(skipped)
    total.add(skipped)
    assert (total.counts["wrong"], len(total.bad_rows), len(skipped.bad_rows)) == (1000, 100, 100)


@pytest.mark.parametrize("content", ["{\n{\n", '{"a": "b"}\n', '{"query": "", "positive": "p"}\n'])
def test_a_file_with_only_bad_rows_is_an_error_even_when_they_are_skipped(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl: has no valid row; the first, .*a\.jsonl:1"):
        list(read_pairs(tmp_path / "a.jsonl", skipped=SkippedRows(skip_bad_rows=True)))


def test_ms_marco_s_triples_and_collection_are_recognised_without_a_header(tmp_path):
    triples, collection = tmp_path / "triples.tsv", tmp_path / "collection.tsv"
    triples.write_text('is "a" so\tthe "passage" it is\t"no\nwhat is b\tthat is b\tno\n')
    collection.write_text('0\tThe "first of them\n1\tanother one\n')
    assert list(read_pairs(triples)) == [
        Pair('is "a" so', 'the "passage" it is', ('"no',)),
        Pair("what is b", "that is b", ("no",)),
    ]
    assert list(read_passages(collection)) == ['The "first of them', "another one"]


def test_a_first_line_without_spaces_is_no_header_in_a_script_that_has_none(tmp_path):
    (tmp_path / "collection.tsv").write_text("0\t河里的水一年四季都很清澈\n1\t另一段文字\n")
    assert list(read_passages(tmp_path / "collection.tsv")) == [
        "河里的水一年四季都很清澈",
        "另一段文字",
    ]
