"""`stillroom runs`: what there is, what happened, and what may go."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from stillroom.cli.app import AsJson, Root, out, runs_app
from stillroom.errors import UserError

LISTED = 20  # runs, where none is named


@runs_app.callback()
def runs(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option("--name", help="Only artifacts of this recipe's name.")
    ] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """List artifacts with their sizes, ages and what they were made from.

    Example: stillroom runs --name quickstart
    """
    if context.invoked_subcommand is not None:
        return
    from stillroom.storage.artifacts import Store

    found = [a for a in Store(root).published() if name is None or a.name == name]
    rows = [
        {
            "ref": a.ref,
            "bytes": a.bytes,
            "created": a.created,
            "inputs": a.manifest["made_by"].get("inputs", {}),
        }
        for a in found
    ]
    if as_json:
        print(json.dumps({"artifacts": rows}))
        return
    shown = Table("artifact", "size", "made", "from")
    for row in rows:
        inputs = " ".join(f"{role}-{key}" for role, key in row["inputs"].items())
        shown.add_row(row["ref"], f"{row['bytes'] / 2**20:,.1f} MiB", row["created"][:19], inputs)
    out.print(shown)


@runs_app.command()
def show(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="A run's id, its job's, or an artifact that it made."),
    ] = None,
    root: Root = "runs",
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened in a run, when, and where its time went; without ID, list the newest runs.

    Example: stillroom runs show 20260131-120000-1a2b --svg run.svg
    """
    from stillroom.observability import run_journal as journal
    from stillroom.observability import timeline as lines
    from stillroom.storage.artifacts import Store

    store = Store(root)
    ids = journal.runs(store)[:LISTED] if run is None else [journal.find(store, run)]
    found = []
    for one in ids:
        events, alive = journal.read(store, one)
        if events:
            found.append(lines.timeline(one, events, alive, time.time()))
    if run is None:
        if as_json:
            print(json.dumps({"runs": [timeline.as_json() for timeline in found]}))
            return
        listed = Table("run", "recipe", "began", "took", "what became of it")
        for timeline in found:
            began = timeline.as_json()["began"][:19]
            recipe = str(timeline.about.get("recipe", ""))
            listed.add_row(
                timeline.run, recipe, began, lines.lasting(timeline.seconds), timeline.outcome
            )
        out.print(listed)
        return
    if not found:
        raise UserError(str(run), "has no event that could be read", "Name another run")
    [timeline] = found
    if svg is not None:
        svg.write_text(lines.svg(timeline), encoding="utf-8")
    log = store.place(f"{journal.FOLDER}/{timeline.run}/{journal.LOG}")
    if as_json:
        print(json.dumps({**timeline.as_json(), "log": log}))
        return
    header, *rows = lines.table(timeline)
    shown = Table(*header, title=f"{timeline.run}: {timeline.outcome}")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    took, between = lines.lasting(timeline.seconds), lines.lasting(timeline.between())
    out.print(f"{took} in all, {between} of it in no stage")
    for what in (timeline.error, *(span.error for span in timeline.spans)):
        if what is not None:
            out.print(what, style="red", markup=False, highlight=False, soft_wrap=True)
            break
    out.print(f"Log: {log}", soft_wrap=True, highlight=False)
    if job := timeline.about.get("job"):
        out.print(f"The job's own: ray job logs {job}", soft_wrap=True, highlight=False)


@runs_app.command()
def prune(
    root: Root = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete artifacts that no release was made from and that a newer one replaces.

    Example: stillroom runs prune --yes
    """
    from stillroom.storage.artifacts import Store

    store = Store(root)
    doomed = superseded(store.published())
    for artifact in doomed:
        out.print(f"{artifact.ref}  {artifact.bytes / 2**20:,.1f} MiB")
    if not doomed:
        out.print("Nothing to prune.")
        return
    if not yes and not typer.confirm(f"Delete these {len(doomed)} artifacts?"):
        raise typer.Exit(1)
    for artifact in doomed:
        store.remove(artifact)
        store.forget(f".logs/{artifact.ref.replace('/', '-')}")  # how its training went


def superseded(artifacts: list[Any]) -> list[Any]:
    """All but the newest of each stage and name, and whatever those or a release were made from."""
    by_key = {(a.stage, a.key): a for a in artifacts}
    newest: dict[tuple[str, str], Any] = {}
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
