"""Locations of data: the same on local disk and on an S3 server."""

import gzip
import importlib.abc
import io
import json
import os
import sys

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.locations import DOCUMENT_EXTENSIONS, find_files, fingerprint
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError
from support.row_files import write_rows

FILES = ["a.jsonl", "b.csv", "in/c.jsonl.gz", "in/deep/d.tsv", "in/e.md", ".hidden/f.jsonl",
         "_SUCCESS.json", "weights.bin"]  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """(location of FILES, function that writes there)."""
    if request.param == "local":
        root = tmp_path / "data"

        def put(name, content=b"x"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

        location = str(root)
    else:
        bucket = request.getfixturevalue("bucket")
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

        def put(name, content=b"x"):
            client.put_object(Bucket=bucket, Key=f"{tmp_path.name}/{name}", Body=content)

        location = f"s3://{bucket}/{tmp_path.name}"
    for name in FILES:
        put(name)
    return location, put


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ["a.jsonl", "b.csv", "in/c.jsonl.gz", "in/deep/d.tsv"]),
        ("/", ["a.jsonl", "b.csv", "in/c.jsonl.gz", "in/deep/d.tsv"]),
        ("/b.csv", ["b.csv"]),
        ("/?.jsonl", ["a.jsonl"]),
        ("/*.jsonl*", ["a.jsonl"]),
        ("/[ab].*", ["a.jsonl", "b.csv"]),
        ("/*/*.gz", ["in/c.jsonl.gz"]),
        ("/in/**/*.tsv", ["in/deep/d.tsv"]),
        ("/**/*.[jt]s*", [".hidden/f.jsonl", "_SUCCESS.json", "a.jsonl", "in/c.jsonl.gz",
                          "in/deep/d.tsv"]),
    ],
)  # fmt: skip
def test_files_are_found_in_order_by_folder_and_by_glob(folder, path, expected):
    root, _ = folder
    files = find_files(root + path)
    assert [file.removeprefix(f"{root}/") for file in files] == expected


def test_documents_are_found_by_their_own_extensions(folder):
    root, _ = folder
    assert find_files(root, DOCUMENT_EXTENSIONS) == [f"{root}/in/e.md"]


def test_a_folder_that_datasets_saved_is_its_rows_and_not_its_metadata(tmp_path):
    write_rows(tmp_path / "data-00000-of-00001.arrow", [{"query": "q", "positive": "p"}])
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    [file] = find_files(str(tmp_path))
    assert list(read_pairs(file)) == [Pair("q", "p")]


def test_globs_may_be_relative(folder, tmp_path, monkeypatch):
    root, _ = folder
    if not root.startswith("s3://"):
        monkeypatch.chdir(root)
        assert find_files("*.csv") == ["b.csv"]
        assert find_files("in/*/*.tsv") == ["in/deep/d.tsv"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/none.jsonl", "does not exist"), ("/*.none", "has no file")],
)
def test_a_location_without_files_is_an_error(folder, path, problem):
    root, _ = folder
    with pytest.raises(UserError, match=problem) as caught:
        find_files(root + path)
    assert caught.value.where == root + path


def test_a_missing_bucket_is_an_error(bucket):
    with pytest.raises(UserError, match="no-such-bucket/x.jsonl: cannot be opened"):
        find_files("s3://no-such-bucket/x.jsonl")


def test_a_fingerprint_changes_with_the_files_and_only_then(folder):
    root, put = folder
    before = fingerprint(root)
    put("weights.bin", b"other")
    assert fingerprint(root) == before
    put("in/c.jsonl.gz", b"longer")
    changed = fingerprint(root)
    put("z.jsonl")
    assert len({before, changed, fingerprint(root)}) == 3
    assert fingerprint(f"{root}/z.jsonl") != fingerprint(f"{root}/in/c.jsonl.gz")


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_pairs_are_read_from_any_location_and_errors_name_the_line(folder, packing):
    root, put = folder
    lines = [json.dumps({"query": f"q{i}", "positive": "p"}) for i in range(3)]
    content = "\n".join([*lines, "{"]).encode()
    put(f"pairs.jsonl{packing}", gzip.compress(content) if packing else content)
    read = read_pairs(f"{root}/pairs.jsonl{packing}")
    assert [next(read) for _ in range(3)] == [Pair(f"q{i}", "p") for i in range(3)]
    with pytest.raises(UserError, match=f"{root}/pairs.jsonl{packing}:4: is not JSON"):
        next(read)


def test_parquet_is_read_from_any_location(folder):
    root, put = folder
    out = io.BytesIO()
    pq.write_table(pa.table({"query": ["q"] * 600, "positive": ["p"] * 600}), out)
    put("pairs.parquet", out.getvalue())
    assert list(read_pairs(f"{root}/pairs.parquet")) == [Pair("q", "p")] * 600


# --- the hub --------------------------------------------------------------------------------


def test_a_data_set_is_read_row_by_row_through_datasets(tmp_path, monkeypatch):
    # `datasets` opens a local folder of that name like a data set of the hub.
    (tmp_path / "set").mkdir()
    rows = [{"anchor": f"q{i}", "positive": "p"} for i in range(3)]
    (tmp_path / "set" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    assert find_files("hub:set::validation") == ["hub:set::validation"]
    assert list(read_pairs("hub:set::validation")) == [Pair(f"q{i}", "p") for i in range(3)]
    with pytest.raises(UserError, match="hub:set: cannot be read: Bad split: train"):
        list(read_pairs("hub:set"))
    before = fingerprint("hub:set")
    (tmp_path / "set" / "dev.jsonl").write_text("{}")
    assert fingerprint("hub:set") != before


def test_offline_the_hub_is_reported_unreachable():
    with pytest.raises(UserError, match="hub:org/none: cannot be read: Couldn't reach"):
        list(read_pairs("hub:org/none"))
    with pytest.raises(
        UserError, match="hub:org/none@v1: is not a data set that can be loaded from the hub"
    ):
        fingerprint("hub:org/none@v1")
    assert fingerprint(f"hub:org/none@{'a' * 40}:en") == "a" * 40


def test_without_the_package_datasets_the_error_says_how_to_install_it(monkeypatch):
    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "datasets":
                raise ModuleNotFoundError(name)

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(UserError, match=r"pip install 'stillroom\[hub\]'"):
        list(read_pairs("hub:org/none"))


@pytest.mark.parametrize("name", ["hub:", "hub::en", "hub:a:b:c:d"])
def test_an_invalid_hub_location_is_refused(name):
    with pytest.raises(UserError, match="names no data set"):
        find_files(name)
