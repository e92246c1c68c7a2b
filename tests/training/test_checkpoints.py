"""Checkpoints in a shared folder and on S3: complete or absent."""

import threading
from pathlib import Path

import boto3
import pytest
from pyarrow import fs

from stillroom.errors import UserError
from stillroom.storage.artifacts import Store
from stillroom.storage.manifest import verify
from stillroom.training.checkpoints import Checkpoints, CheckpointSaver
from support.faulty_s3_proxy import FirstRequests

RUN = ".train/teacher-small-0"


@pytest.fixture(params=["local", "s3"])
def checkpoints(request, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return Checkpoints(Store(str(tmp_path / "root")), RUN)
    return Checkpoints(Store(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}"), RUN)


def save_parts(checkpoints, step, attempt, ranks=(1, 0), world=2, keep=2):
    """Saves the parts of some ranks; by default, those of both ranks of two."""
    for rank in ranks:
        saver = CheckpointSaver(checkpoints, attempt, rank, world, keep)
        saver.save(step, lambda folder, rank=rank: fill(folder, step, rank))
        saver.wait()


def fill(folder, step, rank):
    (folder / "inside").mkdir()
    (folder / "inside" / f"weights-{rank}").write_text(f"worker {rank} at step {step}")
    (folder / f"figures-{rank}").write_text(str(step))


def names(checkpoints):
    folders = fs.FileSelector(checkpoints.base)
    return sorted(info.base_name for info in checkpoints.store.fs.get_file_info(folders))


def test_the_newest_checkpoint_with_every_worker_s_part_is_resumed(checkpoints):
    assert checkpoints.newest() is None
    save_parts(checkpoints, 2, "aa")
    save_parts(checkpoints, 4, "aa", ranks=(0,))  # the other worker died
    # From a worker of another attempt at the same step: the two parts make no checkpoint.
    save_parts(checkpoints, 4, "bb", ranks=(1,))
    assert checkpoints.newest() == "000000002-aa"
    folder = checkpoints.fetch("000000002-aa")
    assert (folder / "inside" / "weights-1").read_text() == "worker 1 at step 2"
    save_parts(checkpoints, 4, "cc", ranks=(0,), world=1)  # fewer workers resume
    assert checkpoints.newest() == "000000004-cc"


def test_a_checkpoint_without_subfolders_is_read_too(checkpoints):
    saver = CheckpointSaver(checkpoints, "aa", 0, 1, 2)
    saver.save(2, lambda folder: (folder / "weights").write_text("all of them"))
    saver.wait()
    assert (checkpoints.fetch(checkpoints.newest()) / "weights").read_text() == "all of them"


def test_older_checkpoints_are_deleted_when_enough_newer_ones_are_complete(checkpoints):
    save_parts(checkpoints, 2, "aa")
    save_parts(checkpoints, 3, "aa", ranks=(1,))
    save_parts(checkpoints, 4, "bb")
    save_parts(checkpoints, 9, "aa", ranks=(1,))  # incomplete, but it may become complete
    save_parts(checkpoints, 6, "bb")
    assert names(checkpoints) == ["000000004-bb", "000000006-bb", "000000009-aa"]


@pytest.mark.parametrize("file", ["inside/weights-0", "1-of-2.json"])
def test_a_damaged_checkpoint_is_ignored_and_the_one_before_is_used(checkpoints, file):
    save_parts(checkpoints, 2, "aa")
    save_parts(checkpoints, 4, "aa")
    with checkpoints.store.fs.open_output_stream(f"{checkpoints.base}/000000004-aa/{file}") as out:
        out.write(b"{half")
    assert checkpoints.newest() == "000000002-aa"


# --- storage that fails ---------------------------------------------------------------------


def test_training_continues_while_a_checkpoint_is_uploaded(faulty):
    checkpoints = Checkpoints(Store(faulty.root), RUN)
    upload_allowed = threading.Event()

    def hold_uploads(method, path):
        if method in ("PUT", "POST"):
            assert upload_allowed.wait(60)
        return False

    faulty.fails = hold_uploads
    saver = CheckpointSaver(checkpoints, "aa", 0, 1, keep=2)
    saver.save(3, lambda folder: fill(folder, 3, 0))
    assert checkpoints.newest() is None, "the upload is on its way, and save() has returned"
    upload_allowed.set()
    saver.wait()
    assert checkpoints.newest() == "000000003-aa"


def test_requests_that_fail_for_a_while_are_retried(faulty):
    checkpoints = Checkpoints(Store(faulty.root), RUN)
    # Each fails more often than the S3 client retries by itself.
    failures = [
        FirstRequests(4, "PUT", "weights-0"),
        FirstRequests(4, "PUT", "0-of-1"),
        FirstRequests(4, "GET", "list-type"),
    ]
    faulty.fails = lambda *request: any(failure(*request) for failure in failures)
    save_parts(checkpoints, 3, "aa", ranks=(0,), world=1)
    assert checkpoints.newest() == "000000003-aa"
    assert not any(failure.left for failure in failures)


def test_a_file_that_storage_returns_damaged_is_written_again(faulty):
    checkpoints = Checkpoints(Store(faulty.root), RUN)
    faulty.cuts = cut = FirstRequests(1, "PUT", "weights-0")
    save_parts(checkpoints, 3, "aa", ranks=(0,), world=1)
    assert cut.left == 0
    folder = checkpoints.fetch(checkpoints.newest())
    assert (folder / "inside" / "weights-0").read_text() == "worker 0 at step 3"


def test_when_storage_keeps_failing_the_error_names_the_local_copy(faulty, monkeypatch):
    monkeypatch.setattr("stillroom.storage.object_store.ATTEMPTS", 2)
    checkpoints = Checkpoints(Store(faulty.root), RUN)
    save_parts(checkpoints, 3, "aa", ranks=(0,), world=1)
    faulty.fails = lambda method, path: method == "PUT"
    with pytest.raises(UserError, match=r"the checkpoint of step 6 cannot be written") as error:
        save_parts(checkpoints, 6, "aa", ranks=(0,), world=1)
    local_copy = Path(str(error.value).split(" is in ")[1].split(". Repair")[0])
    assert (local_copy / "inside" / "weights-0").read_text() == "worker 0 at step 6"
    faulty.fails = lambda method, path: False
    assert checkpoints.newest() == "000000003-aa"


def test_an_artifact_that_storage_refused_is_uploaded_and_not_remade_by_the_next_run(
    faulty, bucket, monkeypatch
):
    monkeypatch.setattr("stillroom.storage.object_store.ATTEMPTS", 2)
    store = Store(faulty.root)
    faulty.fails = lambda method, path: method == "PUT" and "two.txt" in path
    with (
        pytest.raises(
            UserError, match=r"cannot be written.* The complete draft is in (.*)\. Repair"
        ),
        store.draft("corpus", "small", "aa") as draft,
    ):
        (draft.path / "one.txt").write_text("one")
        (draft.path / "two.txt").write_text("two")
        draft.publish({"made": "once"})
    assert (draft.path / "two.txt").read_text() == "two"
    assert not store.exists("corpus", "small", "aa")
    faulty.fails = FirstRequests(4, "PUT", "two.txt")
    with store.draft("corpus", "small", "aa") as draft:
        assert draft.artifact is not None
        assert draft.artifact.manifest["made_by"] == {"made": "once"}
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=faulty.root.split("/")[-1])
    assert any(item["Key"].endswith("two.txt") for item in listed["Contents"])
    artifact = store.open("corpus", "small", "aa")
    verify(artifact.path, artifact.manifest)
