"""Every script in jobs/, run by `ray job submit`, one after another on one recipe; and a job that
is stopped while it trains."""

import re
import time

import pytest

from stillroom.storage.artifacts import Store
from support.ray_head import ROOT, start_head
from support.tiny_models import tiny_decoder, tiny_encoder

STAGE_OF_SCRIPT = {  # the stage that each adds to those before it
    "prepare_corpus": "corpus",
    "train_teacher": "teacher",
    "embed_corpus": "vectors",
    "mine_negatives": "negatives",
    "distil_student": "student",
    "evaluate_models": "report",
    "run_pipeline": "release",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def submit(folder):
    words = [
        f"teacher.base={tiny_decoder(folder / 'teacher')}",
        f"student.base={tiny_encoder(folder / 'student')}",
        f"root={folder / 'runs'}",
    ]
    with start_head(folder) as head:

        def submit(script, *more, options=()):
            return head.run(
                "ray", "job", "submit", "--address", head.url, "--working-dir", ".", *options,
                "--runtime-env", "jobs/runtime_env.yaml", "--",
                "python", f"jobs/{script}", "jobs/recipes/tiny.yaml", *words, *more,
                RAY_AUTH_MODE="token",
            )  # fmt: skip

        submit.head = head
        yield submit


def test_every_script_is_tested():
    assert {script.stem for script in (ROOT / "jobs").glob("*.py")} == set(STAGE_OF_SCRIPT)


@pytest.mark.parametrize("script", STAGE_OF_SCRIPT)
def test_a_script_makes_its_stage_and_reuses_the_others(submit, folder, script):
    before = {artifact.ref for artifact in Store(f"{folder}/runs").list_artifacts()}
    done = submit(f"{script}.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout
    after = {artifact.ref for artifact in Store(f"{folder}/runs").list_artifacts()}
    assert {ref.partition("/")[0] for ref in after - before} == {STAGE_OF_SCRIPT[script]}
    assert done.stdout.count("exists already") == len(before)


def test_a_stopped_job_saves_a_checkpoint_from_which_the_next_resumes(submit, folder):
    head, steps = submit.head, 300
    long_run = [
        f"root={folder / 'stopped'}", f"teacher.phases.0.steps={steps}",
        "scale.teacher.checkpoint_every=1000000",
    ]  # fmt: skip
    job = "to-be-stopped"
    submitted = submit("train_teacher.py", *long_run, options=["--submission-id", job, "--no-wait"])
    assert submitted.returncode == 0, submitted.stderr

    def logged():
        return head.run(
            "ray", "job", "logs", job, "--address", head.url, RAY_AUTH_MODE="token"
        ).stdout

    def status():
        [status] = [entry["status"] for entry in head.jobs() if entry["submission_id"] == job]
        return status

    deadline = time.monotonic() + 180
    while not re.search(r"step [1-9]\d\d+/", logged()):
        assert status() in ("PENDING", "RUNNING") and time.monotonic() < deadline, logged()
        time.sleep(0.5)  # polls for a condition, with a deadline
    head.run("ray", "job", "stop", job, "--address", head.url, RAY_AUTH_MODE="token")
    while status() == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.5)  # polls for a condition, with a deadline
    assert status() == "STOPPED"
    stopped = re.search(r"stops after step (\d+); the run can be resumed", logged())
    assert stopped and 100 <= int(stopped[1]) < steps, logged()
    done = submit("train_teacher.py", *long_run)
    assert done.returncode == 0, done.stdout
    assert f"resumes after step {stopped[1]}, on 2 workers" in done.stdout
