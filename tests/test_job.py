"""`ray job submit` on a real head, as the README has it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from stillroom.artifacts import Store
from tiny import tiny_decoder, tiny_encoder

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def submit(tmp_path_factory):
    """Runs a job on a cluster of this machine; returns the finished `ray job submit`."""
    folder = tmp_path_factory.mktemp("cluster")
    short = tempfile.mkdtemp(prefix="ray")  # its sockets' paths may have 107 characters
    port, dashboard = free_port(), free_port()
    env = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "STILLROOM_ROOT": str(folder / "runs"),
    }
    head = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={port}",
            f"--dashboard-port={dashboard}", "--include-dashboard=true",
            # Its usual port is taken where another test's Ray runs beside this one.
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={short}", "--disable-usage-stats",
        ],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    while not jobs_are_taken(url):
        assert head.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)  # polls for a condition, with a deadline
    models = [
        f"teacher.base={tiny_decoder(folder / 'teacher')}",
        f"student.base={tiny_encoder(folder / 'student')}",
    ]

    def submit(*words):
        while True:
            done = subprocess.run(
                [
                    str(BIN / "ray"), "job", "submit", f"--address={url}", "--working-dir", ".",
                    "--runtime-env", "jobs/runtime_env.yaml", "--",
                    "python", "jobs/run_pipeline.py", "jobs/recipes/tiny.yaml", *models, *words,
                ],
                cwd=ROOT, env=env, capture_output=True, text=True,
            )  # fmt: skip
            # What a busy head says for some seconds more, and then nothing has been begun.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done

    submit.store = Store(str(folder / "runs"))
    yield submit
    os.killpg(head.pid, signal.SIGKILL)  # the head's processes share its fate
    head.wait()
    shutil.rmtree(short, ignore_errors=True)


def jobs_are_taken(url):
    """Whether the head has an agent that would run a job; the address answers before that."""
    try:
        return httpx.get(f"{url}/api/component_activities").status_code == 200 and bool(
            httpx.get(f"{url}/nodes?view=summary").json()["data"]["summary"]
        )
    except (httpx.HTTPError, KeyError, ValueError):
        return False


def test_a_job_makes_artifacts_and_its_log_shows_how_far_it_is(submit):
    done = submit("--until", "teacher")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 6/6" in done.stdout
    assert {artifact.stage for artifact in submit.store.published()} == {"corpus", "teacher"}


def test_a_job_fails_when_its_run_fails(submit):
    done = submit("student.phases.0.steps=-1")
    assert done.returncode == 1
    assert "student.phases.0.steps: -1 is refused" in done.stdout + done.stderr
