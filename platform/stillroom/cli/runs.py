"""`stillroom runs`: what there is, and what may go."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from stillroom.cli.app import AsJson, Root, out, runs_app


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
    from stillroom.artifacts import Store

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
def prune(
    root: Root = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete artifacts that no release was made from and that a newer one replaces.

    Example: stillroom runs prune --yes
    """
    from stillroom.artifacts import Store

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
