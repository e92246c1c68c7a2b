"""Working files that tasks on several machines share, on a disk and in a bucket."""

import functools
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.errors import UserError
from stillroom.storage import object_store
from stillroom.storage.shared_folder import SharedFolder


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    if request.param == "local":
        return SharedFolder(str(tmp_path / "work"))
    return SharedFolder(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}/work")


def test_what_one_process_writes_another_reads(folder):
    folder.write("a/bytes", b"0123456789")
    folder.write_array("a/array.npy", np.arange(6).reshape(2, 3))
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": ["one", "two"], "y": [1, 2]}), content)
    folder.write("a/table.parquet", content.getvalue())
    other = pickle.loads(pickle.dumps(folder))
    assert bytes(other.read("a/bytes")) == b"0123456789"
    assert bytes(other.read("a/bytes", 3, 4)) == b"3456"
    array = other.read_array("a/array.npy")
    array += 1  # it may be changed
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert other.read_table("a/table.parquet", ["x"]).to_pydict() == {"x": ["one", "two"]}
    folder.write("a/bytes", b"again")
    assert bytes(other.read("a/bytes")) == b"again"


def test_a_missing_file_and_one_cut_short_are_named(folder):
    for read in (folder.read, folder.read_array, folder.read_table):
        with pytest.raises(UserError, match=r"work/none: is a working file that cannot be read"):
            read("none")
    folder.write("short", b"\x93NUMPY")
    for read in (folder.read_array, folder.read_table, lambda name: folder.read(name, 0, 9)):
        with pytest.raises(UserError, match=r"work/short: is a working file that cannot be read"):
            read("short")


def test_a_folder_in_it_is_deleted_or_the_whole_and_then_nothing(folder):
    for name in ("a/one", "b/two"):
        folder.write(name, b"x")
    folder.delete("a")
    with pytest.raises(UserError):
        folder.read("a/one")
    assert bytes(folder.read("b/two")) == b"x"
    for _ in range(2):
        folder.delete()
    with pytest.raises(UserError):
        folder.read("b/two")


def test_a_full_disk_leaves_no_file_and_is_reported_with_its_size(tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        # The kernel answers every write to this device as a full disk does.
        opened = functools.partial(open, "/dev/full")
        full.setattr(Path, "open", lambda path, mode: opened(mode))
        with pytest.raises(UserError, match=r"is on a full disk: [\d,.]+ MB are free, and 3\.0 MB"):
            SharedFolder(str(tmp_path)).write("a/large", bytes(3_000_000))
    assert [*tmp_path.rglob("*")] == [tmp_path / "a"]


def test_two_writers_of_the_same_file_do_not_meet(tmp_path, monkeypatch):
    """A node that is taken for dead may go on while its task runs again elsewhere."""
    folder, replace = SharedFolder(str(tmp_path)), os.replace

    def meanwhile(partial, path):
        monkeypatch.setattr(os, "replace", replace)
        folder.write("same", b"the same content")
        replace(partial, path)

    monkeypatch.setattr(os, "replace", meanwhile)
    folder.write("same", b"the same content")
    assert bytes(folder.read("same")) == b"the same content"
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
