"""A full disk is reported as such, whoever fills it."""

import errno

import pytest
import ray.exceptions

from stillroom.errors import UserError
from stillroom.storage import disk_space
from stillroom.storage.disk_space import full_disk_errors, require_free_space


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    require_free_space(tmp_path, 1)
    usage = disk_space.shutil.disk_usage(tmp_path)._replace(free=2_500_000)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"2\.5 MB are free, and 9\.0 MB were to be written"):
        require_free_space(tmp_path, 9_000_000)


def test_the_system_s_error_of_a_full_disk_becomes_one_that_says_what_to_do(tmp_path):
    full = r"is on a full disk: [\d,.]+ MB are free\. Free some"
    with (
        pytest.raises(UserError, match=full),
        full_disk_errors(tmp_path),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)


def test_that_of_a_task_on_another_machine_too(tmp_path):
    cause = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "of-a-node" / "shard"))
    error = ray.exceptions.RayTaskError("task", "traceback", cause).as_instanceof_cause()
    with (
        pytest.raises(UserError, match=f"{tmp_path}: is on a full disk"),
        full_disk_errors(tmp_path),
    ):
        raise error


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(PermissionError), full_disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "denied")
