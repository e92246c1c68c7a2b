"""Tables in mapped files, a file per column."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import UserError
from stillroom.storage import column_writer
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import (
    Joined,
    JoinedNumbers,
    Lookup,
    Ragged,
    RemainingRows,
    TextColumn,
    Zipped,
)

TEXTS = ["", "é" * 9, "one", "two " * 30, "漢字", "x"] * 7


def write(folder, texts, at_a_time=3):
    with TableWriter(folder, texts=["text"], numbers={"length": np.int32}) as table:
        for start in range(0, len(texts), at_a_time):
            part = texts[start : start + at_a_time]
            table.append(text=pa.array(part, pa.string()), length=[len(text) for text in part])


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(column_writer, "BATCH_ROWS", 5)
    monkeypatch.setattr(column_writer, "BATCH_BYTES", 60)


def test_a_column_has_the_texts_that_were_written(small_batches, tmp_path):
    write(tmp_path, TEXTS)
    column = TextColumn(tmp_path, "text")
    assert [*column] == [column[row] for row in range(len(TEXTS))] == TEXTS
    assert column[-1] == TEXTS[-1] and column[np.int64(3)] == TEXTS[3]
    assert column[4:30:3] == TEXTS[4:30:3]
    assert [*pickle.loads(pickle.dumps(column))] == TEXTS
    with pytest.raises(IndexError):
        column[len(TEXTS)]
    np.testing.assert_array_equal(np.load(tmp_path / "length.npy"), [len(t) for t in TEXTS])


def test_a_column_s_bytes_do_not_depend_on_how_its_texts_arrive(small_batches, tmp_path):
    contents = set()
    for at_a_time in (1, 3, len(TEXTS)):
        write(tmp_path, TEXTS, at_a_time)
        contents.add(b"".join((tmp_path / f).read_bytes() for f in ("text.arrow", "length.npy")))
    assert len(contents) == 1


def test_an_empty_column_is_a_column(tmp_path):
    write(tmp_path, [])
    assert [*TextColumn(tmp_path, "text")] == []
    assert np.load(tmp_path / "length.npy").shape == (0,)


def test_a_column_that_is_missing_or_cut_short_is_named(tmp_path):
    write(tmp_path, TEXTS)
    with pytest.raises(UserError, match=r"other\.arrow: is not a column of texts"):
        TextColumn(tmp_path, "other")
    content = (tmp_path / "text.arrow").read_bytes()
    (tmp_path / "text.arrow").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"text\.arrow: is not a column of texts"):
        TextColumn(tmp_path, "text")


def test_a_column_takes_neither_memory_nor_a_file_descriptor(tmp_path):
    text = "a text of some length " * 40
    write(tmp_path, [text] * 60_000, at_a_time=5_000)
    os.sync()  # a page that is not on disk yet counts as a process's own
    script = f"""
import os, sys
sys.path.append({str(Path(__file__).parents[1])!r})
from stillroom.storage.columns import TextColumn
from support.process_memory import process_memory
def own():
    return process_memory()["Anonymous"] / 2**20
before, files = own(), len(os.listdir("/proc/self/fd"))
column = TextColumn({str(tmp_path)!r}, "text")
assert sum(len(text) for text in column) == {60_000 * len(text)}
assert len(os.listdir("/proc/self/fd")) == files
print(own() - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert float(grown.stdout) < 12 < (tmp_path / "text.arrow").stat().st_size / 2**20


def test_columns_are_composed_by_row():
    letters = Lookup(["a", "b"], np.array([1, 0, 1]))
    assert [*letters] == letters[:] == ["b", "a", "b"]
    joined = Joined(letters, Lookup.repeated("c", 2))
    assert [*joined] == joined[:] == ["b", "a", "b", "c", "c"]
    assert Zipped(letters, ["x", "y", "z"])[1:] == [("a", "y"), ("b", "z")]
    ragged = Ragged.of([[3, 4], [], [5]])
    assert [row.tolist() for row in ragged] == [[3, 4], [], [5]]
    numbers = JoinedNumbers(np.arange(3), np.empty(0, np.int32), np.arange(10, 12))
    np.testing.assert_array_equal(numbers[np.array([4, 0, 3, 2])], [11, 0, 10, 2])
    assert len(numbers) == 5


@given(count=st.integers(1, 30), seed=st.integers(0, 99))
def test_remaining_rows_are_all_but_those_left_out(count, seed):
    without = np.flatnonzero(np.random.default_rng(seed).random(count) < 0.4)
    rows = RemainingRows(count, without)
    expected = np.setdiff1d(np.arange(count), without)
    assert len(rows) == len(expected)
    np.testing.assert_array_equal(rows[np.arange(len(rows))], expected)
