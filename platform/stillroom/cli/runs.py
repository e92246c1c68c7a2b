"""`stillroom runs`: list artifacts, show what happened in runs, delete superseded artifacts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.cli.app import AsJson, Root, out, print_json, print_table
from stillroom.errors import UserError
from stillroom.storage.root import ROOT_FOLDER

if TYPE_CHECKING:
    from stillroom.observability.timeline import Timeline
    from stillroom.storage.artifacts import Artifact

MAX_RUNS = 20  # in the list of runs


def runs(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", help="Only artifacts of the recipe with this name.")
    ] = None,
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """List artifacts with their sizes, dates and inputs.

    Example: stillroom runs --name quickstart
    """
    if context.invoked_subcommand is not None:
        return
    from stillroom.storage.artifacts import Store

    artifacts = [a for a in Store(root).list_artifacts() if name is None or a.name == name]
    rows = [
        {
            "ref": a.ref,
            "bytes": a.size_bytes,
            "created": a.created,
            "inputs": a.manifest["made_by"].get("inputs", {}),
        }
        for a in artifacts
    ]
    if as_json:
        print_json({"artifacts": rows})
        return
    print_table(
        ["artifact", "size", "created", "made from"],
        [
            [
                row["ref"],
                f"{row['bytes'] / 2**20:,.1f} MiB",
                row["created"][:19],
                " ".join(f"{role}-{key}" for role, key in row["inputs"].items()),
            ]
            for row in rows
        ],
    )


def show(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="A run's id, its Ray job's id, or an artifact that it made."
        ),
    ] = None,
    root: Root = ROOT_FOLDER,
    svg: Annotated[Path | None, typer.Option(help="Also draw the timeline to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened in a run, and where its time went.

    Without ID, the newest runs are listed.

    Example: stillroom runs show 20260131-120000-1a2b --svg run.svg
    """
    from stillroom.observability import run_journal
    from stillroom.observability.timeline import build_timeline
    from stillroom.storage.artifacts import Store

    store = Store(root)
    newest = run_journal.list_runs(store)[:MAX_RUNS]
    ids = newest if run is None else [run_journal.find_run(store, run)]
    timelines = []
    for run_id in ids:
        events, alive = run_journal.read_events(store, run_id)
        if events:
            timelines.append(build_timeline(run_id, events, alive, time.time()))
    if run is None:
        _print_runs(timelines, as_json)
        return
    if not timelines:
        raise UserError(run, "has no readable events", "Name another run")
    [timeline] = timelines
    log = store.resolve(f"{run_journal.RUNS_FOLDER}/{timeline.run}/{run_journal.LOG_FILE}")
    if svg is not None:
        from stillroom.observability.timeline import render_svg

        svg.write_text(render_svg(timeline), encoding="utf-8")
    _print_run(timeline, log, as_json)


def _print_runs(timelines: "list[Timeline]", as_json: bool) -> None:
    from stillroom.observability.timeline import format_duration

    if as_json:
        print_json({"runs": [timeline.as_json() for timeline in timelines]})
        return
    print_table(
        ["run", "recipe", "started", "took", "outcome"],
        [
            [
                timeline.run,
                str(timeline.about.get("recipe", "")),
                timeline.as_json()["began"][:19],
                format_duration(timeline.seconds),
                timeline.outcome,
            ]
            for timeline in timelines
        ],
    )


def _print_run(timeline: "Timeline", log: str, as_json: bool) -> None:
    from stillroom.observability.timeline import format_duration, table_rows

    if as_json:
        print_json({**timeline.as_json(), "log": log})
        return
    header, *rows = table_rows(timeline)
    print_table(header, rows, title=f"{timeline.run}: {timeline.outcome}")
    total, outside = (
        format_duration(timeline.seconds),
        format_duration(timeline.seconds_between_stages()),
    )
    out.print(f"{total} in total, {outside} of it between stages")
    errors = [timeline.error, *(span.error for span in timeline.spans)]
    if error := next(filter(None, errors), None):
        out.print(error, style="red", markup=False, highlight=False, soft_wrap=True)
    out.print(f"Log: {log}", soft_wrap=True, highlight=False)
    if job := timeline.about.get("job"):
        out.print(f"The Ray job's log: ray job logs {job}", soft_wrap=True, highlight=False)


def prune(
    root: Root = ROOT_FOLDER,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete artifacts that newer ones replace.

    Keeps the artifacts that a release was made from.

    Example: stillroom runs prune --yes
    """
    from stillroom.storage.artifacts import Store

    store = Store(root)
    old = superseded(store.list_artifacts())
    for artifact in old:
        out.print(f"{artifact.ref}  {artifact.size_bytes / 2**20:,.1f} MiB")
    if not old:
        out.print("Nothing to prune.")
        return
    if not yes and not typer.confirm(f"Delete these {len(old)} artifacts?"):
        raise typer.Exit(1)
    for artifact in old:
        store.remove(artifact)
        store.delete_folder(f".logs/{artifact.ref.replace('/', '-')}")  # logs of its training


def superseded(artifacts: "list[Artifact]") -> "list[Artifact]":
    """Artifacts that can be deleted.

    Keeps the newest artifact of each stage and name, every release, and all artifacts that these
    were made from.
    """
    by_key = {(a.stage, a.key): a for a in artifacts}
    newest: dict[tuple[str, str], Artifact] = {}
    for artifact in sorted(artifacts, key=lambda a: a.created):
        newest[artifact.stage, artifact.name] = artifact
    waiting = [*newest.values(), *(a for a in artifacts if a.stage == "release")]
    kept: set[str] = set()
    while waiting:
        artifact = waiting.pop()
        if artifact.ref not in kept:
            kept.add(artifact.ref)
            inputs = artifact.manifest["made_by"].get("inputs", {})
            waiting += [by_key[i] for i in inputs.items() if i in by_key]
    return [artifact for artifact in artifacts if artifact.ref not in kept]
