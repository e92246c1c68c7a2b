"""Every script in jobs/ as `ray job submit` runs it, one after another on one recipe."""

import pytest

from head import ROOT, started
from stillroom.artifacts import Store
from tiny import tiny_decoder, tiny_encoder

MADE = {  # what each adds to what the ones before it made
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
    with started(folder) as head:
        yield lambda script: head.run(
            "ray", "job", "submit", "--address", head.url, "--working-dir", ".",
            "--runtime-env", "jobs/runtime_env.yaml", "--",
            "python", f"jobs/{script}", "jobs/recipes/tiny.yaml", *words, RAY_AUTH_MODE="token",
        )  # fmt: skip


def test_no_script_is_left_out():
    assert {script.stem for script in (ROOT / "jobs").glob("*.py")} == set(MADE)


@pytest.mark.parametrize("script", MADE)
def test_a_script_makes_its_stage_and_nothing_again(submit, folder, script):
    before = {artifact.ref for artifact in Store(f"{folder}/runs").published()}
    done = submit(f"{script}.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout
    after = {artifact.ref for artifact in Store(f"{folder}/runs").published()}
    assert {ref.partition("/")[0] for ref in after - before} == {MADE[script]}
    assert done.stdout.count("exists already") == len(before)
