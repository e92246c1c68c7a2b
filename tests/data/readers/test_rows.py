"""Rows of real files: any compression, any characters, any size."""

import csv
import gzip
import io
import json
import subprocess
import sys
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.readers import rows as module
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import SkippedRows
from stillroom.data.readers.rows import read_rows
from stillroom.errors import UserError

ODD = "a\u2028b\u2029c\x0bd\x85e \u00a0 zero\u200bwidth \U0001f600 \x00 tab"

FORMS = [".jsonl", ".json", ".csv", ".tsv"]


def fields(file, **more):
    return [row for _, row in read_rows(str(file), **more)]


def write_compressed(path, content: bytes):
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(content)
    elif path.suffix == ".gz":  # two members, as `cat a.gz b.gz` writes
        half = len(content) // 2
        path.write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("form", "packing"),
    [(form, packing) for form in FORMS for packing in ("", ".gz", ".zst")] + [(".parquet", "")],
)
def test_unusual_characters_survive_every_format_and_compression(tmp_path, form, packing):
    rows = [{"query": ODD, "positive": 'two\nlines, "quoted"'}, {"query": "é", "positive": "ö"}]
    if form == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert fields(tmp_path / "a.parquet") == rows
        return
    if form == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif form == ".json":
        text = json.dumps(rows, ensure_ascii=False)
    else:
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), delimiter="," if form == ".csv" else "\t")
        table.writeheader()
        table.writerows(rows)
        text = out.getvalue()
    file = write_compressed(tmp_path / f"a{form}{packing}", text.encode("utf-8-sig"))
    assert fields(file) == rows


def test_composed_and_decomposed_letters_are_kept_and_count_as_the_same_text(tmp_path):
    spellings = [unicodedata.normalize(form, "Ångström café") for form in ("NFC", "NFD")]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in spellings))
    texts = [row["text"] for row in fields(file)]
    assert texts == spellings and texts[0] != texts[1]
    assert text_key(texts[0]) == text_key(texts[1])


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_line_of_64_mib_is_read(tmp_path, form):
    text = "x" * (64 << 20)
    file = tmp_path / f"a.{form}"
    with file.open("w") as out:
        if form == "csv":
            out.write(f"query,positive\nq,{text}\n")
        else:
            out.write(f'{{"query": "q", "positive": "{text}"}}\n')
    [row] = fields(file)
    assert row["positive"] == text


def test_a_longer_line_is_an_error_or_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 1 << 20)
    file = tmp_path / "a.jsonl"
    row = '{"query": "q", "positive": "p"}\n'
    file.write_text(row + "x" * (3 << 20) + "\n" + row)
    with pytest.raises(UserError, match=r"a\.jsonl:2: is longer than 1 MiB"):
        fields(file)
    skipped = SkippedRows(skip_bad_rows=True)
    assert len(list(read_pairs(file, skipped=skipped))) == 2
    assert skipped.counts == {"wrong": 1}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40) | st.none()), min_size=1),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_json_lists_and_objects_one_after_another_are_read_as_json_reads_them(
    tmp_path_factory, values, indent, one_list
):
    file = tmp_path_factory.mktemp("json") / "a.json"
    documents = [json.dumps(value, indent=indent, ensure_ascii=indent is None) for value in values]
    file.write_text(f"[{', '.join(documents)}]" if one_list else "\n".join(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "JSON_BLOCK_BYTES", 7)  # values then cross block boundaries
        assert fields(file) == values


@pytest.mark.parametrize(
    ("name", "content", "where", "problem"),
    [
        ("a.json", '[{"a": "b"},\n {"a": nonsense}, {"a": 1}]', "a.json:2", "is not JSON"),
        ("a.json", '[{"a": "b"},\n{"a": "cut o', "a.json:2", "is not JSON"),
        ("a.json", '[{"a": "b"},\n{"a": "b", "a": "c"}]', "a.json:2", "it names 'a' twice"),
        ("a.jsonl", '{"a": 1}\n{"b": [{"a": 1, "a": 2}]}', "a.jsonl:2", "it names 'a' twice"),
        ("a.json", '[{"a": "b"},\n\n 3]', "a.json:3", "is not a JSON object"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "a.jsonl:2", "is not JSON"),
        ("a.csv", 'a,b\n"one\ntwo",3\n"x"y,3\n', "a.csv:4", "is not a valid row"),
        ("a.csv", 'a,b\n\n"one\ntwo",3\n1,2,3\n', "a.csv:5", "but the header has 2"),
        ("a.tsv", "a\tb\n1\t2\n1\n", "a.tsv:3", "but the header has 2"),
        ("a.jsonl", '{"a": 1}\n\udcff\n', "a.jsonl:2", "is not UTF-8"),
        ("a.jsonl.gz", b"not packed", "a.jsonl.gz", "cannot be read"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            "a.jsonl.gz",
            "cannot be read",
        ),
        ("a.jsonl.zst", b"not packed", "a.jsonl.zst", "cannot be read"),
    ],
)
def test_unreadable_rows_are_an_error_with_their_line(tmp_path, name, content, where, problem):
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        fields(tmp_path / name)
    assert caught.value.where == f"{tmp_path}/{where}"
    assert problem in caught.value.problem


def test_a_tsv_that_is_not_quoted_keeps_its_quotation_marks(tmp_path):
    # As in the STS benchmark: a quotation mark may open a cell, end it, or stand alone.
    cells = [["1", '"so" he said', "b"], ["2", '"open', "b"], ["3", 'c"', '"d'], ["4", 'e"', "f"]]
    (tmp_path / "a.tsv").write_text(
        "".join("\t".join(row) + "\n" for row in [["n", "x", "y"], *cells])
    )
    assert [list(row.values()) for row in fields(tmp_path / "a.tsv")] == cells


READ_AND_MEASURE_MEMORY = """
import resource, sys
from stillroom.data.readers.files import read_pairs
for file in sys.argv[1:]:
    count = sum(1 for _ in read_pairs(file))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (1_000, 25_000):
        rows = [{"query": f"q{i}", "positive": f"{i} " * 200} for i in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        files = [
            write_compressed(tmp_path / f"{count}.jsonl.zst", lines),
            write_compressed(
                tmp_path / f"{count}.json", b"[" + lines.replace(b"}\n{", b"},\n{") + b"]"
            ),
            tmp_path / f"{count}.parquet",
        ]
        pq.write_table(pa.Table.from_pylist(rows), files[-1], row_group_size=count)
        done = subprocess.run(
            [sys.executable, "-c", READ_AND_MEASURE_MEMORY, *map(str, files)],
            capture_output=True,
            check=True,
        )
        rows_read, peak = map(int, done.stdout.split())
        assert rows_read == count
        peaks.append(peak)
    size = len(lines) >> 20
    assert peaks[1] - peaks[0] < size / 2, f"MiB: {peaks}, of a file of {size}"
