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


def start(words, **env):
    return subprocess.Popen(
        words, env={**os.environ, **env}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def killed_after(words, step, **env):
    """Kills the command once it logs a later step than `step`; returns its lines until then."""
    running, lines = start(words, **env), []
    for line in running.stdout:
        lines.append(line)
        if (match := re.search(r"step (\d+)/", line)) and int(match[1]) > step:
            children = psutil.Process(running.pid).children(recursive=True)
            os.kill(running.pid, signal.SIGKILL)
            psutil.wait_procs(children, timeout=60)  # Ray's processes end with their driver
            return lines
    raise AssertionError("".join(lines))


def test_a_killed_run_on_an_object_store_resumes_and_trains_the_weights_of_one_on_a_disk(
    bucket, words, tmp_path
):
    remote, local = f"s3://{bucket}/{tmp_path.name}", str(tmp_path / "runs")
    env = {"STILLROOM_CACHE": str(tmp_path / "cache")}
    killed_after([*words, f"root={remote}"], STEPS // 3, **env)
    assert {artifact.stage for artifact in Store(remote).list_artifacts()} == {"corpus"}
    resumed = start([*words, f"root={remote}"], **env)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    resumed_after = int(re.search(r"resumes after step (\d+), on 2 workers", output)[1])
    # One more checkpoint may have been on its way when the process died.
    assert resumed_after % EVERY == 0 and resumed_after > STEPS // 3 - 2 * EVERY
    assert "release/tiny" in output
    undisturbed = start([*words, f"root={local}", "--until", "teacher"])
    assert undisturbed.wait() == 0, undisturbed.stdout.read()

    teachers = {root: Store(root).find("teacher/tiny").path for root in (remote, local)}
    files = {path.relative_to(teachers[local]) for path in teachers[local].rglob("*.safetensors")}
    assert files
    for file in files:
        tensors = load_file(teachers[local] / file)
        for name, tensor in load_file(teachers[remote] / file).items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-7)
