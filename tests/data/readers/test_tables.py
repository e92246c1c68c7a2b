"""CSV and TSV: headers, quotation marks and line ends."""

import pytest

from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.data.readers.rows import read_rows
from stillroom.errors import UserError

GOOD = [Pair(f"q{i}", f"p{i}") for i in range(8)]
LINES = [f"q{i}\tp{i}" for i in range(8)]


def read_skipping(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    skipped = SkippedRows(skip_bad_rows=True)
    return list(read_pairs(path, skipped=skipped)), dict(skipped.counts)


@pytest.mark.parametrize("stray", ['q"\tp', '"q\tp', 'q\t"p', 'q\tp"', 'q\t"p" he said'])
@pytest.mark.parametrize("bad", ["one cell", "a\tb\tc", 'x" y', 'x"\ty\tz'])
def test_a_stray_quotation_mark_and_a_bad_line_of_a_tsv_cost_no_other_row(tmp_path, stray, bad):
    lines = ["query\tpositive", *LINES[:4], stray, *LINES[4:6], bad, *LINES[6:]]
    pairs, counts = read_skipping(tmp_path / "a.tsv", "\n".join(lines))
    kept = [Pair(*stray.split("\t"))] if "wrong" in counts and counts["wrong"] == 1 else []
    assert pairs == [*GOOD[:4], *kept, *GOOD[4:]]
    assert counts == {"wrong": 1}


def test_every_line_within_quotation_marks_that_nothing_closes_is_counted(tmp_path):
    lines = ["query,positive", "q0,p0", 'q,"open', "q1,p1", 'q,"p" x', "q2,p2", 'q,"never closed']
    pairs, counts = read_skipping(tmp_path / "a.csv", "\n".join([*lines, "q3,p3"]))
    assert (pairs, counts) == ([GOOD[0], GOOD[2]], {"wrong": 5})
    with pytest.raises(UserError, match=r"a\.csv:3: is not a valid row"):
        list(read_pairs(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_files_with_the_line_ends_of_old_macs_are_read(tmp_path, name):
    comma = "," if name == "a.csv" else "\t"
    rows = [f"query{comma}positive", *(line.replace("\t", comma) for line in LINES)]
    if name == "a.jsonl":
        rows = [f'{{"query": "{pair.query}", "positive": "{pair.passage}"}}' for pair in GOOD]
    for end in ("\r", "\r\n", "\n"):
        for last in ("", end):
            assert read_skipping(tmp_path / name, end.join(rows) + last) == (GOOD, {})


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b'"query,positive', "is not a valid header"),
        (b'"query"x,positive', "is not a valid header"),
        (b"qu\xff,positive", r"a\.csv:1: is not"),
        (b"query,query,positive", "it names 'query' twice"),
    ],
)
@pytest.mark.parametrize("skips", [True, False])
def test_no_row_becomes_the_header_of_a_file_whose_header_is_broken(
    tmp_path, header, problem, skips
):
    (tmp_path / "a.csv").write_bytes(header + b"\nquery,positive\nq,p\n")
    skipped = SkippedRows(skip_bad_rows=skips)
    with pytest.raises(UserError, match=problem):
        list(read_pairs(tmp_path / "a.csv", skipped=skipped))


def test_spaces_around_the_names_of_columns_do_not_count(tmp_path):
    assert read_skipping(tmp_path / "a.csv", "query , positive\nq0,p0\n") == (GOOD[:1], {})


@pytest.mark.parametrize("content", ['{"data": [{"a": "b"}]}', '{"v": 1, "rows": [{"a": "b"}]}'])
def test_json_with_its_rows_in_a_field_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="has its rows in '(data|rows)'. Write them as a list"):
        list(read_rows(str(tmp_path / "a.json"), on_bad_row=lambda _: None))


def test_a_json_list_that_is_cut_off_between_rows_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": "b"},\n{"a": "c"}')
    with pytest.raises(UserError, match=r"a\.json:2: ends within a list"):
        list(read_rows(str(tmp_path / "a.json")))
