"""A recipe's run as a job of a cluster: what is sent there, and what is heard of it."""

import asyncio
import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from stillroom.cluster.join import knock, refused
from stillroom.config.load import SECRET
from stillroom.errors import UserError

ENVIRONMENT = "jobs/runtime_env.yaml"  # of a checkout

# What a job needs where no file says so: quiet workers, and time for a checkpoint when it is
# stopped, of which Ray itself gives 3 seconds.
SETTINGS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

MIB = 1 << 20

AGENT_S = 60  # seconds in which a head that answers has somebody to run a job

LOST_S = 300  # seconds in which a head that was lost comes back


@dataclass(frozen=True)
class Job:
    """A command, the folder that is sent for it to run in, and Ray's runtime environment.

    Attributes:
        file: where the environment was read from; None of the one for an installed package.
    """

    command: tuple[str, ...]
    folder: Path
    environment: dict[str, Any]
    file: Path | None

    def raw(self, address: str) -> str:
        """The command line of Ray's that sends the same."""
        told = ["--runtime-env", str(self.file)]
        if self.file is None:
            told = ["--runtime-env-json", json.dumps(self.environment)]
        words = ["ray", "job", "submit", "--address", address, "--working-dir", str(self.folder)]
        # Ray's client sends no token unless it is told to, and these overrule its --address.
        around = [f"RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'token')}"]
        if {os.environ.get(variable, address) for variable in ADDRESSES} != {address}:
            around.append(f"RAY_API_SERVER_ADDRESS={shlex.quote(address)}")
        return " ".join([*around, shlex.join([*words, *told, "--", *self.command])])


def environment(folder: Path, file: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The runtime environment in a file, or that of the folder's checkout, or one that brings the
    package as it is installed here; and its file.

    Raises:
        UserError: when it is none, or holds a secret.
    """
    if file is None and (folder / ENVIRONMENT).is_file():
        file = folder / ENVIRONMENT
    if file is None:
        return {"py_modules": [str(Path(__file__).parents[1])], "env_vars": SETTINGS}, None
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
        variables = {k: str(v) for k, v in (read or {}).get("env_vars", {}).items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as fault:
        problem = f"is no runtime environment: {' '.join(str(fault).split())}"
        raise UserError(str(file), problem, f"Start from {ENVIRONMENT}") from fault
    for name, value in variables.items():
        if SECRET.search(name) and not value.startswith("/"):
            raise UserError(
                f"{file}: env_vars.{name}",
                "whoever may list the cluster's jobs reads it there",
                "Set it in the environment that the cluster's nodes start with; or set "
                f"{name}_FILE here, to the path of a file on them",
            )
    return dict(read or {}), file


def sent(job: Job) -> dict[str, int]:
    """The files of the job's folder that Ray sends, by their paths in it, with their bytes.

    Raises:
        UserError: when they are more than Ray takes, or cannot be read.
    """
    excluded = [*get_runtime_env_default_excludes(), *(job.environment.get("excludes") or ())]
    sizes: dict[str, int] = {}
    quiet = logging.getLogger(f"{__name__}.walk")
    quiet.setLevel(logging.WARNING)

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(job.folder).as_posix()] = path.stat().st_size

    try:
        packaging._dir_travel(  # Ray's own walk: what is counted is what will be sent
            job.folder,
            [packaging._get_excludes(job.folder, excluded)],
            count,
            include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1",
            logger=quiet,
        )
    except OSError as fault:
        where = str(fault.filename or job.folder)
        raise UserError(
            where, f"cannot be sent: {fault.strerror}", "List it in .rayignore"
        ) from fault
    total, most = sum(sizes.values()), packaging.GCS_STORAGE_MAX_SIZE
    if total >= most:
        largest = ", ".join(f"{name} {size / MIB:,.0f} MiB" for name, size in _largest(sizes))
        raise UserError(
            f"--working-dir: {job.folder}",
            f"holds {total / MIB:,.0f} MiB to send, and Ray takes {most / MIB:,.0f}; most of it is "
            f"{largest}",
            "List what the job does not need in .rayignore, and put data where the nodes read it: "
            "object storage or a shared folder",
        )
    return sizes


def _largest(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """The three largest of what lies in the folder itself, from a MiB on."""
    tops: dict[str, int] = {}
    for name, size in sizes.items():
        first, inside, _ = name.partition("/")
        tops[first + inside] = tops.get(first + inside, 0) + size
    large = [(name, size) for name, size in tops.items() if size >= MIB]
    return sorted(large, key=lambda item: -item[1])[:3]


class Cluster:
    """The job server of a cluster.

    Raises:
        UserError: when nothing answers at the address, or our token is refused.
    """

    def __init__(self, address: str):
        self.address = address
        for variable in ADDRESSES:  # they would overrule the one that we were given
            os.environ.pop(variable, None)
        try:
            knock(address)
            self.client = JobSubmissionClient(address)
        except AuthenticationError as fault:
            raise refused(f"--address {address}") from fault
        except (OSError, RuntimeError) as fault:
            raise UserError(
                f"--address {address}",
                f"no job server answers: {' '.join(str(fault).split())}",
                "Write it as http://HEAD:8265; from outside the cluster, first forward that port "
                "(`ray dashboard CLUSTER.yaml`, or `kubectl port-forward service/… 8265`)",
            ) from fault

    def submit(self, job: Job, id: str) -> None:
        """Sends the folder and starts the job.

        Raises:
            UserError: when Ray refuses it.
        """
        environment = {**job.environment, "working_dir": str(job.folder)}
        deadline = time.monotonic() + AGENT_S
        while True:
            try:
                self.client.submit_job(
                    entrypoint=shlex.join(job.command), runtime_env=environment, submission_id=id
                )
                return
            except AuthenticationError as fault:
                raise refused(f"--address {self.address}") from fault
            except (RuntimeError, ValueError, TypeError) as fault:
                # A head that has just started says so, and has begun nothing.
                if "No available agent" in str(fault) and time.monotonic() < deadline:
                    time.sleep(1)
                    continue
                last = (str(fault).strip().splitlines() or [repr(fault)])[-1]
                raise UserError(
                    f"--address {self.address}", f"refuses the job: {last}", "Mend what it names"
                ) from fault

    def follow(self, id: str, show: Callable[[str], None]) -> JobStatus:
        """Shows the job's log until it has ended. A connection that is lost is made again.

        Raises:
            UserError: when the head stays away.
        """
        asyncio.run(self._show(id, show))
        while not (status := self.client.get_job_status(id)).is_terminal():
            time.sleep(0.5)  # the log ends a little before the job
        return status

    async def _show(self, id: str, show: Callable[[str], None]) -> None:
        shown, deadline = 0, time.monotonic() + LOST_S
        while True:
            position = 0  # every connection gets the log from its beginning
            try:
                async for text in self.client.tail_job_logs(id):
                    if position + len(text) > shown:
                        show(text[max(0, shown - position) :])
                    position += len(text)
                    shown, deadline = max(shown, position), time.monotonic() + LOST_S
                return
            except (RuntimeError, aiohttp.ClientError, OSError) as fault:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"--address {self.address}",
                        f"does not answer any more: {fault}",
                        f"The job may go on without: see `ray job status {id}`",
                    ) from fault
                await asyncio.sleep(2)
