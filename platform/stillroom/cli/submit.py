"""`stillroom submit`: a recipe's run on a cluster."""

import glob
import json
import os
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from stillroom.cli.app import AsJson, Overrides, RecipePath, app, err, lasting
from stillroom.errors import UserError


@app.command()
def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    address: Annotated[
        str,
        typer.Option(
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The cluster's job server."
        ),
    ] = "http://127.0.0.1:8265",
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the log, and end as the job does.")
    ] = False,
    working_dir: Annotated[
        Path, typer.Option(help="The folder that is sent for the job to run in.")
    ] = Path(),
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="Ray's runtime environment, in place of jobs/runtime_env.yaml."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(help="Make this stage alone.")] = None,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Release only what passes the gate.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on a cluster, as a job of Ray.

    The recipe is checked here before anything is sent; the data and models that it names are
    checked where the job runs. Ctrl-C ends the showing of the log, not the job. Secrets are never
    sent: set them in the environment of the cluster's nodes.

    Example: stillroom submit my.yaml root=s3://bucket/runs --address http://HEAD:8265 --follow
    """
    from stillroom.config.load import read_recipe

    read = read_recipe(recipe, overrides or [])
    words = [*(overrides or []), *_stages(until, only), *([] if gate else ["--no-gate"])]
    root = lasting(read.root)
    if not any(word.startswith("root=") for word in words):
        words.append(f"root={root}")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported
    from stillroom.cluster.jobs import MIB, Cluster, Job, environment, sent

    inside = os.path.relpath(recipe, working_dir)
    command = ("python", "-m", "stillroom.cli", "run", inside, *words)
    job = Job(command, working_dir, *environment(working_dir, runtime_env))
    files = sent(job)
    if inside not in files:
        raise UserError(
            recipe,
            f"is not among the files of {working_dir.absolute()} that are sent",
            "Name the folder that holds it with --working-dir, and see .gitignore and .rayignore",
        )
    for place in _unsent(read, working_dir, files):
        raise UserError(
            place,
            f"is not among the files of {working_dir.absolute()} that are sent",
            "Take it out of .gitignore or .rayignore, or put it where the nodes read it: object "
            "storage or a shared folder",
        )
    name = f"{read.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    told: dict[str, Any] = {
        "job": None if dry_run else name,
        "address": address,
        "command": job.raw(address),
        "files": len(files),
        "bytes": sum(files.values()),
        "status": None,
    }

    def say(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    def show(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr if as_json else sys.stdout)

    say(f"{len(files):,} files, {sum(files.values()) / MIB:,.1f} MiB. The same by hand:")
    say(f"  {job.raw(address)}")
    if not dry_run:
        if _in_the_clear(address):
            err.print("The token goes unencrypted: forward a port, or use https.", style="yellow")
        cluster = Cluster(address)
        cluster.submit(job, name)
        told["status"] = "SUBMITTED"
        say(f"Job {name} is submitted. Its log, and how to stop it:")
        say(f"  ray job logs --follow {name} --address {address}")
        say(f"  ray job stop {name} --address {address}")
        if follow:
            try:
                told["status"] = cluster.follow(name, show).value
            except KeyboardInterrupt:
                say(f"\nThe job goes on. Stop it: ray job stop {name} --address {address}")
                raise typer.Exit(130) from None
            say(f"Job {name}: {told['status']}")
    if as_json:
        print(json.dumps(told))
    if told["status"] in ("FAILED", "STOPPED"):
        raise typer.Exit(1)


def _stages(until: str | None, only: str | None) -> Iterator[str]:
    """The options as `run` takes them."""
    from stillroom.pipeline.plan import VERSIONS

    for option, stage in (("--until", until), ("--only", only)):
        if stage is not None and stage not in VERSIONS:
            raise UserError(option, f"{stage!r} is no stage", f"Use one of {', '.join(VERSIONS)}")
        yield from () if stage is None else (option, stage)


def _in_the_clear(address: str) -> bool:
    """Whether others than this machine may read what is sent there.

    Raises:
        UserError: when it is no address of a job server.
    """
    from stillroom.serving.http.auth import is_loopback

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}", "is not a job server's", "Write it as http://HEAD:8265"
        )
    return parts.scheme == "http" and not is_loopback(parts.hostname)


def _unsent(recipe: Any, folder: Path, files: dict[str, int]) -> Iterator[str]:
    """Data and models that the recipe names in the folder, and that are not sent with it. What is
    not there at all may be on the cluster."""
    models = [recipe.teacher.base, recipe.student.base, recipe.negatives.rescore]
    models += [member.base for member in recipe.teacher.members or ()]
    named = [*recipe.corpus.evaluation.values(), *recipe.negatives.miners, *filter(None, models)]
    for source in recipe.corpus.sources.values():
        named += source.places()
    for place in named:
        if Path(place).is_absolute():
            continue
        for found in glob.glob(place, root_dir=folder):
            path = os.path.normpath(found)
            if path not in files and not any(name.startswith(f"{path}/") for name in files):
                yield place
