"""Jobs on a real head with token authentication, by `stillroom submit` and as Ray's own command."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ray.job_submission import JobStatus

from stillroom.cluster.jobs import Job, files_to_send, read_runtime_env
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.storage.artifacts import Store
from support.openai_endpoint import Endpoint, embeddings
from support.ray_head import ROOT, SUBMIT, TOKEN, start_head
from support.tiny_models import tiny_decoder, tiny_encoder

SECRET = "sk-planted-0123456789abcdef"
TINY = ROOT / "jobs" / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def head(folder):
    (folder / "secret").write_text(SECRET + "\n")
    with start_head(folder, PLANTED_KEY_FILE=str(folder / "secret")) as head:
        yield head


@pytest.fixture(scope="module")
def tiny(folder):
    """The tiny recipe's file and overrides."""
    models = tiny_decoder(folder / "teacher"), tiny_encoder(folder / "student")
    return [TINY, f"teacher.base={models[0]}", f"student.base={models[1]}"]


@pytest.fixture(scope="module")
def user_folder(folder):
    """A folder of a user of the installed package: recipe, pairs, and files that are not sent."""
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}. " * (1 + i % 3)} for i in range(24)]
    user_folder = folder / "own"
    for hidden in (".venv/lib", "runs/corpus", "__pycache__"):
        (user_folder / hidden).mkdir(parents=True)
        (user_folder / hidden / "large.bin").write_bytes(b"x" * 1000)
    (user_folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (user_folder / ".gitignore").write_text("runs/\n")
    content = {
        "corpus": {
            "sources": {"own": {"format": "files", "pairs": ["pairs.jsonl"]}},
            "held_out": {"queries": 4, "passages": 8},
        },
        "vectors": {"shard_size": 8},
        "student": {
            "base": str(tiny_encoder(folder / "small")), "pooling": "mean", "space": "teacher",
            "phases": [
                {"data": "pairs", "steps": 2, "global_batch": 4, "learning_rate": 1e-4,
                 "hard_negatives": 0, "losses": {"cosine": 1.0}}
            ],
        },
        "scale": {"teacher_api": {"api_key_env": "PLANTED_KEY"}},
    }  # fmt: skip
    (user_folder / "mine.yaml").write_text(json.dumps(content))
    return user_folder


def files_with(text, *folders):
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def api_encoder(folder):
    """The encoder behind the API."""
    return create_encoder(
        str(tiny_encoder(folder / "behind")),
        space="x",
        options=ContractOptions(pooling="mean", max_tokens=64),
    )


def job_with_api(head, folder, api, until):
    """The command that submits a job whose teacher is an API."""
    teacher = {"api": {"base_url": api.url, "model": "m", "dims": 64}}
    return [
        *SUBMIT, "mine.yaml", f"root={folder}/runs", f"teacher={json.dumps(teacher)}",
        "--until", until, "--follow", "--address", head.url,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(head, user_folder, folder, api_encoder):
    """A finished job whose teacher is an API that needs the cluster's key; the command lines of all
    processes meanwhile; and the API's endpoint, with the requests that it got."""
    command_lines = set()
    with Endpoint(embeddings(api_encoder)) as api:
        words = job_with_api(head, folder, api, "vectors")
        job = subprocess.Popen(
            words,
            cwd=user_folder,
            env=head.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while job.poll() is None:
            for process in psutil.process_iter(["cmdline"]):
                command_lines.add(" ".join(process.info["cmdline"] or ()))
            time.sleep(0.2)
        output, errors = job.communicate()
    return subprocess.CompletedProcess(words, job.returncode, output, errors), command_lines, api


def test_a_job_makes_artifacts_and_reports_how_it_ended(done, folder):
    job, _, _ = done
    assert job.returncode == 0, job.stdout + job.stderr
    assert "\r" not in job.stdout
    assert re.search(r"^Job mine-\S+: SUCCEEDED$", job.stdout, re.M)
    stages = {artifact.stage for artifact in Store(str(folder / "runs")).list_artifacts()}
    assert stages == {"corpus", "teacher", "vectors"}


def test_exactly_the_listed_files_are_sent(done, user_folder, head):
    [package] = head.session.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    sent = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert set(files_to_send(Job((), user_folder, *read_runtime_env(user_folder, None)))) == sent
    assert sent == {".gitignore", "mine.yaml", "pairs.jsonl"}


def test_the_cluster_s_api_key_is_used_and_never_written(done, head, folder, user_folder):
    job, command_lines, api = done
    assert {h["Authorization"] for h in api.headers} == {f"Bearer {SECRET}"}
    for secret in (SECRET, TOKEN):
        assert files_with(secret, folder / "runs", head.session, user_folder) == []
        assert not [line for line in command_lines if secret in line]
        assert secret not in json.dumps(head.jobs()) + job.stdout + job.stderr
    # The search itself works: it finds the API's URL, which is no secret, in all these places.
    assert files_with(api.url, folder / "runs") and files_with(api.url, head.session)
    assert [line for line in command_lines if api.url in line] and api.url in str(head.jobs())


@pytest.mark.full
def test_the_printed_command_submits_the_same_job(head, tiny, folder):
    words = [*tiny, f"root={folder}/by-hand", "--until", "corpus"]
    report = json.loads(head.submit(*words, "--dry-run", "--json").stdout)
    done = head.run("sh", "-c", report["command"])
    assert done.returncode == 0, done.stdout + done.stderr
    [artifact] = Store(f"{folder}/by-hand").list_artifacts()
    assert artifact.stage == "corpus"
    assert shlex.split(report["command"])[1:4] == ["ray", "job", "submit"]


@pytest.mark.full
def test_a_job_fails_when_its_run_fails(head, tiny, folder):
    done = head.submit(*tiny, "teacher.base=/nowhere", f"root={folder}/failed", "--follow")
    assert done.returncode == 1
    assert "/nowhere: there is no such folder" in done.stdout
    assert re.search(r"^Job tiny-\S+: FAILED$", done.stdout, re.M)


@pytest.mark.full
def test_ctrl_c_leaves_the_job_running_and_prints_how_to_stop_it(head, tiny, folder):
    job = subprocess.Popen(
        [*map(str, [*SUBMIT, *tiny, f"root={folder}/stopped", "--follow", "--address", head.url])],
        cwd=ROOT, env=head.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell's background job (&) ignores SIGINT, and so would this child of such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines = []
    for line in job.stdout:
        lines.append(line)
        if "Running entrypoint" in line:
            job.send_signal(signal.SIGINT)
    assert job.wait() == 130, "".join(lines)
    *_, last = lines
    stop = re.fullmatch(r"The job continues\. To stop it: (ray job stop (tiny-\S+) .*)\n", last)
    assert stop, "".join(lines)
    [info] = [info for info in head.jobs() if info["submission_id"] == stop[2]]
    assert info["status"] == "RUNNING"
    assert head.run(*shlex.split(stop[1]), RAY_AUTH_MODE="token").returncode == 0


@pytest.mark.full
def test_a_stopped_job_is_reported_and_the_next_is_accepted(head, tiny, folder):
    job = subprocess.Popen(
        [*map(str, [*SUBMIT, *tiny, f"root={folder}/stopped", "--follow", "--address", head.url])],
        cwd=ROOT, env=head.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for line in job.stdout:
        if "Running entrypoint" in line:
            [name] = [i["submission_id"] for i in head.jobs() if i["status"] == "RUNNING"]
            head.run("ray", "job", "stop", name, "--address", head.url, RAY_AUTH_MODE="token")
    assert job.wait() == 1
    assert line == f"Job {name}: {JobStatus.STOPPED}\n"


@pytest.fixture
def no_token(request, folder):
    """Environment variables without a token, or with a wrong one."""
    if request.param == "none":
        return {"RAY_AUTH_TOKEN_PATH": str(folder / "none")}
    return {"RAY_AUTH_TOKEN": "another"}


def refused(done):
    return (
        done.returncode == 1
        and "refuses our token, or requires one" in done.stderr
        and "ray get-auth-token" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "no_token", ["none", pytest.param("wrong", marks=pytest.mark.full)], indirect=True
)
def test_without_the_cluster_s_token_nothing_is_sent(head, tiny, folder, no_token):
    before = len(head.jobs())
    done = head.submit(*tiny, f"root={folder}/refused", **no_token)
    assert refused(done), done.stderr
    assert len(head.jobs()) == before


@pytest.mark.parametrize(
    "no_token", [pytest.param("none", marks=pytest.mark.full), "wrong"], indirect=True
)
def test_without_the_cluster_s_token_a_run_does_not_join_the_cluster(head, tiny, folder, no_token):
    words = [*tiny, f"root={folder}/refused", "--until", "corpus"]  # its check loads no model
    run = (sys.executable, "-m", "stillroom.cli", "run", *words)
    done = head.run(*run, RAY_ADDRESS=head.gcs, RAY_AUTH_MODE="token", **no_token)
    assert refused(done), done.stderr
    assert Store(f"{folder}/refused").list_artifacts() == []


@pytest.mark.full
def test_a_job_that_trains_has_a_line_in_its_log_for_each_step(
    done, head, user_folder, folder, api_encoder
):
    with Endpoint(embeddings(api_encoder)) as api:
        job = head.run(*job_with_api(head, folder, api, "student"), cwd=user_folder)
    assert job.returncode == 0, job.stdout + job.stderr
    assert re.search(r"^.*step 2/2 .*loss", job.stdout, re.M)
    assert "\r" not in job.stdout
    stages = {artifact.stage for artifact in Store(str(folder / "runs")).list_artifacts()}
    assert stages == {"corpus", "teacher", "vectors", "student"}
