"""`stillroom submit`: a recipe's run as a job on a Ray cluster."""

import glob
import os
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from stillroom.cli.app import (
    AsJson,
    Overrides,
    RecipePath,
    err,
    print_json,
    require_lasting_root,
)
from stillroom.cli.recipes import Gate, Only, Until
from stillroom.errors import UserError

if TYPE_CHECKING:
    from stillroom.config.recipe import Recipe

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells


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
        bool, typer.Option("--follow", help="Print the job's log, and exit with its result.")
    ] = False,
    working_dir: Annotated[
        Path, typer.Option(help="The folder to send; the job runs in it.")
    ] = Path(),
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="Ray's runtime environment; jobs/runtime_env.yaml in a checkout."),
    ] = None,
    until: Until = None,
    only: Only = None,
    gate: Gate = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on a Ray cluster, as a job.

    The recipe is checked here, before anything is sent; its data and models are checked where the
    job runs. Ctrl-C stops the log, not the job. Secrets are never sent: set them in the environment
    of the cluster's nodes.

    Example: stillroom submit my.yaml root=s3://bucket/runs --address http://HEAD:8265 --follow
    """
    from stillroom.config.load import read_recipe

    read = read_recipe(recipe, overrides or [])
    root = require_lasting_root(read.root)
    words = [*(overrides or []), *_stage_options(until, only), *([] if gate else ["--no-gate"])]
    if not any(word.startswith("root=") for word in words):
        words.append(f"root={root}")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported
    from stillroom.cluster.jobs import MIB, Job, JobServer, files_to_send, read_runtime_env

    sent_recipe = os.path.relpath(recipe, working_dir)
    command = ("python", "-m", "stillroom.cli", "run", sent_recipe, *words)
    job = Job(command, working_dir, *read_runtime_env(working_dir, runtime_env))
    files = files_to_send(job)
    _require_sent(read, sent_recipe, working_dir, files)
    name = f"{read.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    summary: dict[str, Any] = {
        "job": None if dry_run else name,
        "address": address,
        "command": job.ray_command(address),
        "files": len(files),
        "bytes": sum(files.values()),
        "status": None,
    }

    def say(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    def show_log(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr if as_json else sys.stdout)

    say(f"{len(files):,} files, {sum(files.values()) / MIB:,.1f} MiB. The same with Ray's command:")
    say(f"  {summary['command']}")
    if not dry_run:
        if _is_unencrypted(address):
            err.print(
                "The token is sent unencrypted: forward a port, or use https.", style="yellow"
            )
        server = JobServer(address)
        server.submit(job, name)
        summary["status"] = "SUBMITTED"
        say(f"Submitted job {name}. To see its log, and to stop it:")
        say(f"  ray job logs --follow {name} --address {address}")
        say(f"  ray job stop {name} --address {address}")
        if follow:
            try:
                summary["status"] = server.follow(name, show_log).value
            except KeyboardInterrupt:
                say(f"\nThe job continues. To stop it: ray job stop {name} --address {address}")
                raise typer.Exit(INTERRUPTED) from None
            say(f"Job {name}: {summary['status']}")
    if as_json:
        print_json(summary)
    if summary["status"] in ("FAILED", "STOPPED"):
        raise typer.Exit(1)


def _stage_options(until: str | None, only: str | None) -> Iterator[str]:
    """The stage options of `stillroom run`."""
    from stillroom.pipeline.step import STAGE_VERSIONS

    for option, stage in (("--until", until), ("--only", only)):
        if stage is not None and stage not in STAGE_VERSIONS:
            raise UserError(
                option, f"{stage!r} is not a stage", f"Use one of {', '.join(STAGE_VERSIONS)}"
            )
        yield from () if stage is None else (option, stage)


def _is_unencrypted(address: str) -> bool:
    """Whether traffic to the job server is unencrypted.

    Raises:
        UserError: when this is not the address of a job server.
    """
    from stillroom.serving.http.auth import is_loopback

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}",
            "is not the address of a job server",
            "Write it as http://HEAD:8265",
        )
    return parts.scheme == "http" and not is_loopback(parts.hostname)


def _require_sent(recipe: "Recipe", path: str, folder: Path, files: dict[str, int]) -> None:
    """Checks that the recipe, and the data and models that it names in the folder, are sent.

    Raises:
        UserError: for the first file that is not sent.
    """
    problem = f"is not among the files of {folder.absolute()} that are sent"
    if path not in files:
        raise UserError(
            path,
            problem,
            "Set --working-dir to a folder that holds it, and check .gitignore and .rayignore",
        )
    for location in _unsent(recipe, folder, files):
        raise UserError(
            location,
            problem,
            "Take it out of .gitignore or .rayignore, or put it where the nodes can read it: "
            "object storage or a shared folder",
        )


def _unsent(recipe: "Recipe", folder: Path, files: dict[str, int]) -> Iterator[str]:
    """Data and models that the recipe names in the folder and that are not sent.

    A relative path that does not exist here may exist on the cluster.
    """
    models = [recipe.teacher.base, recipe.student.base, recipe.negatives.cross_encoder]
    models += [member.base for member in recipe.teacher.members or ()]
    locations = [
        *recipe.corpus.evaluation.values(),
        *([] if recipe.evaluation.guards is None else [recipe.evaluation.guards]),
        *(() if recipe.corpus.texts is None else recipe.corpus.texts.files),
        *recipe.negatives.miners,
        *filter(None, models),
    ]
    for source in recipe.corpus.sources.values():
        locations += source.locations()
    for location in locations:
        if Path(location).is_absolute():
            continue
        for match in glob.glob(location, root_dir=folder):
            path = os.path.normpath(match)
            if path not in files and not any(name.startswith(f"{path}/") for name in files):
                yield location
