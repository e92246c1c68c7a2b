"""Submits a recipe's run to a cluster as a Ray job, and follows its log."""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from stillroom.cluster.join import check_port_open, token_refused
from stillroom.cluster.ray_private import (
    max_package_bytes,
    walk_working_dir,
    working_dir_excludes,
)
from stillroom.config.secrets import SECRET_NAME, SECRET_VALUE
from stillroom.errors import UserError, one_line

RUNTIME_ENV_FILE = "jobs/runtime_env.yaml"  # in a checkout

# For a job without a runtime environment file: no progress bars of workers, and time to write a
# checkpoint when the job is stopped (Ray's default is 3 seconds).
DEFAULT_ENV_VARS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
MIB = 1 << 20
AGENT_TIMEOUT_S = 60  # for a head that answers to be able to run jobs
RECONNECT_TIMEOUT_S = 300  # for a lost head to come back


@dataclass(frozen=True)
class Job:
    """A job to submit.

    Attributes:
        command: run inside `folder`, which is sent along.
        runtime_env: Ray's runtime environment.
        file: the source of `runtime_env`; None if it was made for an installed package.
    """

    command: tuple[str, ...]
    folder: Path
    runtime_env: dict[str, Any]
    file: Path | None

    def ray_command(self, address: str) -> str:
        """The `ray job submit` command line that submits the same job."""
        options = ["--runtime-env", str(self.file)]
        if self.file is None:
            options = ["--runtime-env-json", json.dumps(self.runtime_env)]
        submit = ["ray", "job", "submit", "--address", address, "--working-dir", str(self.folder)]
        # Ray's client sends a token only with RAY_AUTH_MODE, and the other two overrule --address.
        variables = [f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'token')}"]
        if {os.environ.get(variable, address) for variable in ADDRESS_VARIABLES} != {address}:
            variables.append(f"RAY_API_SERVER_ADDRESS={shlex.quote(address)}")
        return " ".join([*variables, shlex.join([*submit, *options, "--", *self.command])])


def read_runtime_env(folder: Path, file: Path | None) -> tuple[dict[str, Any], Path | None]:
    """Ray's runtime environment for a job, and the file that it is from.

    Without `file`, it is that of the checkout in `folder`. Without a checkout, it is one that sends
    the package as installed here, and the file is None.

    Raises:
        UserError: when the file holds no runtime environment, or a secret.
    """
    if file is None and (folder / RUNTIME_ENV_FILE).is_file():
        file = folder / RUNTIME_ENV_FILE
    if file is None:
        return {"py_modules": [str(Path(__file__).parents[1])], "env_vars": DEFAULT_ENV_VARS}, None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        variables = {k: str(v) for k, v in (content or {}).get("env_vars", {}).items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        problem = f"is no runtime environment: {one_line(error)}"
        raise UserError(str(file), problem, f"Start from {RUNTIME_ENV_FILE}") from error
    for name, value in variables.items():
        secret_by_name = SECRET_NAME.search(name) and not value.startswith("/")
        if secret_by_name or SECRET_VALUE.search(value):
            raise UserError(
                f"{file}: env_vars.{name}",
                "everybody who may list the cluster's jobs can read it there",
                "Set it in the environment in which the cluster's nodes start, or set "
                f"{name}_FILE here to the path of a file on them",
            )
    return dict(content or {}), file


def files_to_send(job: Job) -> dict[str, int]:
    """Files of the job's folder that Ray will send: relative path → size in bytes.

    Raises:
        UserError: when they are larger than Ray accepts, or cannot be read.
    """
    excludes = [*working_dir_excludes(), *(job.runtime_env.get("excludes") or ())]
    sizes: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(job.folder).as_posix()] = path.stat().st_size

    try:
        use_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"
        walk_working_dir(job.folder, excludes, count, use_gitignore=use_gitignore)
    except OSError as error:
        where = str(error.filename or job.folder)
        raise UserError(
            where, f"cannot be sent: {error.strerror}", "List it in .rayignore"
        ) from error
    total, limit = sum(sizes.values()), max_package_bytes()
    if total >= limit:
        largest = ", ".join(f"{name} {size / MIB:,.0f} MiB" for name, size in _largest(sizes))
        raise UserError(
            f"--working-dir: {job.folder}",
            f"holds {total / MIB:,.0f} MiB to send, and Ray takes {limit / MIB:,.0f}; most of it "
            f"is {largest}",
            "List what the job does not need in .rayignore, and put data where the nodes can read "
            "it: object storage or a shared folder",
        )
    return sizes


def _largest(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """The three largest files or folders at the top level, of those with at least 1 MiB."""
    tops: dict[str, int] = {}
    for name, size in sizes.items():
        first, inside, _ = name.partition("/")
        tops[first + inside] = tops.get(first + inside, 0) + size
    large = [(name, size) for name, size in tops.items() if size >= MIB]
    return sorted(large, key=lambda item: -item[1])[:3]


class JobServer:
    """Client of a cluster's job server.

    Raises:
        UserError: when nothing answers at the address, or our token is refused.
    """

    def __init__(self, address: str):
        self.address = address
        for variable in ADDRESS_VARIABLES:  # they would overrule `address`
            os.environ.pop(variable, None)
        try:
            check_port_open(address)
            self.client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise token_refused(f"--address {address}") from error
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"--address {address}",
                f"no job server answers: {one_line(error)}",
                "Write it as http://HEAD:8265. From outside the cluster, first forward that port "
                "(`ray dashboard CLUSTER.yaml`, or `kubectl port-forward service/… 8265`)",
            ) from error

    def submit(self, job: Job, id: str) -> None:
        """Sends the folder and starts the job.

        Raises:
            UserError: when Ray refuses it.
        """
        environment = {**job.runtime_env, "working_dir": str(job.folder)}
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                self.client.submit_job(
                    entrypoint=shlex.join(job.command), runtime_env=environment, submission_id=id
                )
                return
            except AuthenticationError as error:
                raise token_refused(f"--address {self.address}") from error
            except (RuntimeError, ValueError, TypeError) as error:
                # A head that has just started answers this before it can start jobs.
                if "No available agent" in str(error) and time.monotonic() < deadline:
                    time.sleep(1)
                    continue
                last = (str(error).strip().splitlines() or [repr(error)])[-1]
                raise UserError(
                    f"--address {self.address}", f"refuses the job: {last}", "Correct what it names"
                ) from error

    def follow(self, id: str, show: Callable[[str], None]) -> JobStatus:
        """Shows the job's log until the job ends; reconnects where the connection is lost.

        Raises:
            UserError: when the head does not come back.
        """
        asyncio.run(self._show(id, show))
        while not (status := self.client.get_job_status(id)).is_terminal():
            time.sleep(0.5)  # the log ends a little before the job
        return status

    async def _show(self, id: str, show: Callable[[str], None]) -> None:
        shown, deadline = 0, time.monotonic() + RECONNECT_TIMEOUT_S
        while True:
            position = 0  # every connection gets the log from its beginning
            try:
                async for text in self.client.tail_job_logs(id):
                    if position + len(text) > shown:
                        show(text[max(0, shown - position) :])
                    position += len(text)
                    shown, deadline = max(shown, position), time.monotonic() + RECONNECT_TIMEOUT_S
                return
            except (RuntimeError, aiohttp.ClientError, OSError) as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"--address {self.address}",
                        f"stopped answering: {error}",
                        f"The job may still be running: see `ray job status {id}`",
                    ) from error
                await asyncio.sleep(2)
