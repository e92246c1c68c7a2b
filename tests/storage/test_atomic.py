"""Files are written completely or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from stillroom.storage.atomic import atomic_write


def test_a_file_replaces_another_only_when_it_is_complete(tmp_path):
    (tmp_path / "file").write_text("before")
    with atomic_write(tmp_path / "file") as file:
        file.write("after, ä")
        file.flush()
        assert (tmp_path / "file").read_text() == "before"
    assert (tmp_path / "file").read_text(encoding="utf-8") == "after, ä"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file", "wb") as file:
        file.write(b"after")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.promise("pipeline")
def test_a_killed_process_leaves_the_old_file_and_the_next_write_succeeds(tmp_path):
    (tmp_path / "file").write_text("before")
    code = (
        "import os, signal, sys; from pathlib import Path; from stillroom.storage.atomic import "
        "atomic_write\nwith atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write('half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "before"
    with atomic_write(tmp_path / "file") as file:
        file.write("after")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "after"
