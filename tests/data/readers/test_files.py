"""Pairs and passages of every file format; errors with their lines."""

import pytest

from stillroom.data.readers.files import read_pairs, read_passages
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from support.row_files import FILE_NAMES, write_rows

ROWS = [
    {"query": "one", "positive": "first, with a comma", "negatives": ["no", "nor this"]},
    {"query": "zwei", "positive": 'zweites „Stück“\nand a "second" line', "negatives": []},
]


PAIRS = [Pair(row["query"], row["positive"], tuple(row["negatives"])) for row in ROWS]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_every_format_gives_the_same_pairs(tmp_path, name):
    assert list(read_pairs(write_rows(tmp_path / name, ROWS))) == PAIRS


def test_alternative_field_names_a_byte_order_mark_and_blank_lines_are_accepted(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"query": "q", "passage": "p", "negative": "n"}\n\n', encoding="utf-8")
    assert list(read_pairs(file)) == [Pair("q", "p", ("n",))]


def test_passages_come_with_their_titles_and_from_plain_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "T", "text": "body"}\n{"passage": "other"}\n')
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert list(read_passages(tmp_path / "a.jsonl")) == ["T body", "other"]
    assert list(read_passages(tmp_path / "b.txt")) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "where", "problem"),
    [
        (b'{"query": "q", "positive": "p"}\n{"query": "q"\n', "a.jsonl:2", "is not JSON"),
        (b'{"query": "q"}\n', "a.jsonl:1", "is not a pair in a known layout; it has query"),
        (b'{"query": 3, "positive": "p"}\n', "a.jsonl:1", "'query' is of type int"),
        (b'{"query": " ", "positive": "p"}\n', "a.jsonl:1", "'query' is empty"),
        (b'\n["q", "p"]\n', "a.jsonl:2", "is not a JSON object"),
        (
            b'{"query": "q", "positive": "p", "negatives": 3}\n',
            "a.jsonl:1",
            "'negatives' is of type int",
        ),
        (b'{"query": "q", "positive": "p", "negatives": [""]}\n', "a.jsonl:1", "is empty"),
        (b"\n\xff\xfe\n", "a.jsonl:2", "is not UTF-8"),
        (b"", "a.jsonl", "is empty"),
    ],
)
def test_an_error_names_the_line(tmp_path, content, where, problem):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_pairs(tmp_path / "a.jsonl"))
    assert caught.value.where == str(tmp_path / where)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"query,positive\none,two,three\n", "but the header has 2"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.jsonl.gz", b"not zipped", "cannot be read"),
        ("a.xml", b"<a/>", "has no format that can be read"),
    ],
)
def test_a_file_of_another_format_than_its_name_says_is_an_error(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(read_pairs(tmp_path / name))


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "no.csv"])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        list(read_pairs(tmp_path / name))
