"""A run whose root is an object store: `make clusters`."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file

from stillroom.storage.artifacts import Store
from support.ray_head import ROOT
from support.tiny_models import tiny_decoder, tiny_encoder

STEPS, EVERY = 120, 5


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        sys.executable, "-m", "stillroom.cli", "run", str(ROOT / "jobs" / "recipes" / "tiny.yaml"),
        f"teacher.base={tiny_decoder(folder / 'teacher')}",
        f"student.base={tiny_encoder(folder / 'student')}",
        f"teacher.phases.0.steps={STEPS}", f"scale.teacher.checkpoint_every={EVERY}",
    ]  # fmt: skip


def begun(words, **env):
    return subprocess.Popen(
        words, env={**os.environ, **env}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def killed_after(words, step, **env):
    """The command's lines until it said that it was beyond the step, and was killed."""
    running, lines = begun(words, **env), []
    for line in running.stdout:
        lines.append(line)
        if (at := re.search(r"step (\d+)/", line)) and int(at[1]) > step:
            of_it = psutil.Process(running.pid).children(recursive=True)
            os.kill(running.pid, signal.SIGKILL)
            psutil.wait_procs(of_it, timeout=60)  # Ray's processes end with their driver
            return lines
    raise AssertionError("".join(lines))


def test_a_run_on_an_object_store_goes_on_after_its_death_and_ends_as_one_on_a_disk(
    bucket, words, tmp_path
):
    there, here = f"s3://{bucket}/{tmp_path.name}", str(tmp_path / "runs")
    env = {"STILLROOM_CACHE": str(tmp_path / "cache")}
    killed_after([*words, f"root={there}"], STEPS // 3, **env)
    assert {artifact.stage for artifact in Store(there).published()} == {"corpus"}
    again = begun([*words, f"root={there}"], **env)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    went_on = int(re.search(r"goes on after step (\d+), on 2 workers", said)[1])
    # Of the checkpoints, one more may have been on its way.
    assert went_on % EVERY == 0 and went_on > STEPS // 3 - 2 * EVERY
    assert "release/tiny" in said
    in_peace = begun([*words, f"root={here}", "--until", "teacher"])
    assert in_peace.wait() == 0, in_peace.stdout.read()

    found = {root: Store(root).find("teacher/tiny").path for root in (there, here)}
    files = {path.relative_to(found[here]) for path in found[here].rglob("*.safetensors")}
    assert files
    for file in files:
        tensors = load_file(found[here] / file)
        for name, tensor in load_file(found[there] / file).items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-7)
