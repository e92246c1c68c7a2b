import json
import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from pyarrow import fs

from stillroom.errors import UserError
from stillroom.storage.artifacts import Store, key_of
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.manifest import verify

MADE_BY = {"stage": "corpus", "inputs": {}, "section": {"a": 1}}


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return str(tmp_path / "root")
    return f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}"


def make(root: str, key: str = "aa", name: str = "small", text: str = "hello") -> str:
    with Store(root).draft("corpus", name, key) as draft:
        if draft.artifact is None:
            (draft.path / "inside").mkdir(exist_ok=True)
            (draft.path / "inside" / "one.txt").write_text(text)
            (draft.path / "two.txt").write_text("two")
            draft.publish(MADE_BY)
        return draft.artifact.ref


def test_a_published_artifact_is_found_and_verifies(root):
    ref = make(root)
    store = Store(root)
    assert ref == "corpus/small-aa"
    assert store.exists("corpus", "small", "aa")
    artifact = store.find("corpus/small")
    assert (artifact.path / "inside" / "one.txt").read_text() == "hello"
    assert artifact.manifest["made_by"] == MADE_BY
    assert artifact.size_bytes == len("hello") + len("two")
    verify(artifact.path, artifact.manifest)
    assert [a.ref for a in store.list_artifacts()] == [ref]


def test_a_name_without_a_key_means_the_newest_artifact(root):
    make(root, "aa")
    make(root, "bb")
    make(root, "cc", name="other")
    assert Store(root).find("corpus/small").key == "bb"
    assert Store(root).find("corpus/small-aa").key == "aa"


def test_files_beside_artifacts_are_ignored(root):
    ref = make(root)
    store = Store(root)
    for name in ("notes", "corpus/notes-aa"):
        with store.fs.open_output_stream(f"{store.base}/{name}") as stream:
            stream.write(b"mine")
    assert [artifact.ref for artifact in store.list_artifacts()] == [ref]


def test_an_unpublished_draft_is_no_artifact_and_stays_for_the_next_try(root):
    store = Store(root)
    with pytest.raises(RuntimeError), store.draft("corpus", "small", "aa") as draft:
        (draft.path / "half.txt").write_text("half")
        raise RuntimeError("killed")
    assert not store.exists("corpus", "small", "aa")
    assert store.list_artifacts() == []
    with pytest.raises(UserError, match="no such artifact"):
        store.open("corpus", "small", "aa")
    with store.draft("corpus", "small", "aa") as draft:
        assert (draft.path / "half.txt").read_text() == "half"


@pytest.mark.promise("pipeline")
def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    store = Store(str(tmp_path))
    make(str(tmp_path))
    (tmp_path / "corpus" / "small-aa" / "manifest.json").unlink()
    assert not store.exists("corpus", "small", "aa")
    # … and does not block a real one.
    assert make(str(tmp_path), text="again") == "corpus/small-aa"
    text = (store.find("corpus/small").path / "inside" / "one.txt").read_text()
    assert text == "again"


@pytest.mark.parametrize("change", ["missing", "longer", "link"])
def test_an_altered_file_is_refused_on_opening(tmp_path, change):
    make(str(tmp_path))
    file = tmp_path / "corpus" / "small-aa" / "two.txt"
    if change == "missing":
        file.unlink()
    elif change == "longer":
        file.write_text("two more")
    else:
        file.unlink()
        (tmp_path / "secret").write_text("two")
        file.symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"two\.txt: differs from its artifact's manifest"):
        Store(str(tmp_path)).open("corpus", "small", "aa")


def test_verify_finds_changed_content_of_the_same_size(tmp_path):
    make(str(tmp_path))
    (tmp_path / "corpus" / "small-aa" / "two.txt").write_text("owt")
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match=r"two\.txt"):
        artifact = store.open("corpus", "small", "aa")
        verify(artifact.path, artifact.manifest)


def test_changed_content_in_object_storage_never_reaches_a_reader(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    root = f"s3://{bucket}/{tmp_path.name}"
    make(root)
    s3 = boto3.client("s3")
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{tmp_path.name}/corpus")["Contents"]
    [key] = [item["Key"] for item in listed if item["Key"].endswith("two.txt")]
    s3.put_object(Bucket=bucket, Key=key, Body=b"owt")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(UserError, match=r"two\.txt"):
        Store(root).find("corpus/small")
    assert not list((tmp_path / "another machine").rglob("two.txt"))


def test_a_machine_fetches_an_artifact_once_for_all_its_workers(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    root = f"s3://{bucket}/{tmp_path.name}"
    make(root)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another machine"))
    artifact = Store(root).find("corpus/small")
    copies = artifact.path.with_name(f"{artifact.path.name}.partial")
    artifact.path.rename(copies)  # as a process that was killed leaves it
    (copies / "two.txt").write_text("tw")
    fetched = []
    copy_files = fs.copy_files
    monkeypatch.setattr(
        fs, "copy_files", lambda *args: (fetched.append(args[0]), copy_files(*args))
    )
    pickled = pickle.dumps(artifact)
    with ThreadPoolExecutor(6) as pool:
        opened = [*pool.map(pickle.loads, [pickled] * 6)]
    assert len(fetched) == len(artifact.manifest["files"]) == 2
    assert {(worker.path / "two.txt").read_text() for worker in opened} == {"two"}
    assert not copies.exists()


def test_a_disk_that_is_too_small_for_an_artifact_is_named_before_it_is_fetched(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    root = f"s3://{bucket}/{tmp_path.name}"
    make(root)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "another machine"))
    usage = shutil.disk_usage(tmp_path)._replace(free=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GB free, and corpus/small-aa takes 0.0 GB"):
        Store(root).find("corpus/small")
    assert not list((tmp_path / "another machine").rglob("two.txt"))


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_lead_outside_its_folder(tmp_path, path):
    make(str(tmp_path))
    file = tmp_path / "corpus" / "small-aa" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][path] = {"bytes": 1, "sha256": ""}
    atomic_write_json(file, manifest)
    with pytest.raises(UserError, match="is not a valid manifest"):
        Store(str(tmp_path)).open("corpus", "small", "aa")


@pytest.mark.parametrize("word", ["", "a/b", "..", ".hidden", "Upper"])
def test_a_name_cannot_lead_outside_the_root(tmp_path, word):
    with (
        pytest.raises(UserError, match="cannot name an artifact"),
        Store(str(tmp_path)).draft("corpus", word, "aa"),
    ):
        pass


def _slow_make(root: str, started: str, log: str) -> None:
    with Store(root).draft("corpus", "small", "aa") as draft:
        if draft.artifact is None:
            Path(started).touch()
            time.sleep(0.3)  # long enough for the other to arrive at the lock
            (draft.path / "one.txt").write_text("one")
            with Path(log).open("a") as file:
                file.write("made\n")
            draft.publish(MADE_BY)


def test_one_of_two_processes_makes_the_artifact_and_the_other_waits(tmp_path):
    root, started, log = (str(tmp_path / name) for name in ("root", "started", "log"))
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_slow_make, args=(root, started, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert Path(log).read_text() == "made\n"


def _die_at(root: str, call: int) -> None:
    """Makes the artifact in a process that dies at its n-th change to the file system."""
    count = 0

    def dying(event: str, args: tuple) -> None:
        nonlocal count
        if event in ("os.rename", "os.mkdir", "os.remove") or (
            event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax")
        ):
            count += 1
            if count == call:
                os._exit(9)

    import sys

    sys.addaudithook(dying)
    make(root)


def _crash_everywhere(folder: Path) -> None:
    """Makes artifacts in forks that die one change later each time, until one of them survives.

    Runs in a process of its own: forks of one that has threads may crash by themselves.
    """
    codes = [9]
    while codes[-1] == 9 and len(codes) < 40:
        child = os.fork()
        if child == 0:
            _die_at(str(folder / str(len(codes))), len(codes))
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    (folder / "codes.json").write_text(json.dumps(codes[1:]))


@pytest.mark.promise("pipeline")
def test_a_crash_at_any_write_leaves_no_broken_artifact(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_crash_everywhere, args=(tmp_path,)
    )
    process.start()
    process.join()
    *crashes, last = json.loads((tmp_path / "codes.json").read_text())
    assert last == 0, "no run survived"
    assert len(crashes) > 7
    for call in range(1, len(crashes) + 1):
        root = str(tmp_path / str(call))
        store = Store(root)
        if store.exists("corpus", "small", "aa"):
            artifact = store.open("corpus", "small", "aa")
            verify(artifact.path, artifact.manifest)
        make(root)
        artifact = store.open("corpus", "small", "aa")
        verify(artifact.path, artifact.manifest)


def test_a_removed_artifact_is_gone(root):
    make(root)
    store = Store(root)
    store.remove(store.find("corpus/small"))
    assert store.list_artifacts() == []
    assert make(root) == "corpus/small-aa"


def test_a_missing_bucket_is_a_user_error(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="root: s3://nothing-here"):
        make("s3://nothing-here/x")


def test_a_root_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(str(tmp_path / "file"))


def test_a_key_depends_on_content_and_not_on_the_order_of_fields():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert len(key_of({})) == 12
