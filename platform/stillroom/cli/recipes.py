"""Commands that take a recipe, and `doctor`."""

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from stillroom.cli.app import (
    AsJson,
    Overrides,
    RecipePath,
    app,
    lasting,
    out,
    print_report,
    stdout_to_stderr,
)
from stillroom.errors import UserError


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(help="Make this stage alone.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan instead.")] = False,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Release only what passes the gate.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a recipe's artifacts, up to a release that can be served.

    Example: stillroom run jobs/recipes/quickstart.yaml student.phases.0.steps=200
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline
    from stillroom.preflight.recipe import check_recipe

    if dry_run:
        plan(recipe, overrides, gate=gate, as_json=as_json)
        return
    read = read_recipe(recipe, overrides or [])
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # Ray has started this as a job
        lasting(read.root)
    steps = selected(pipeline(read, gate=gate), until, only)
    check_recipe(read, steps)
    from stillroom.pipeline.run import run as produce_all

    done = []
    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        for produced in produce_all(read, steps):
            done.append(produced)
            if not as_json:
                took = "exists already" if produced.reused else f"{produced.seconds:,.0f} s"
                out.print(f"[bold]{produced.step.stage:10}[/] {produced.artifact.ref}  {took}")
        if not all(produced.reused for produced in done):
            from stillroom.cluster.session import disconnect

            disconnect()  # only then has the last line of a worker been printed
    summary = _summary(done)
    if as_json:
        print(json.dumps(summary))
        return
    if all(produced.reused for produced in done):
        out.print("Nothing to do: every artifact exists.")
    if summary["report"]:
        print_report(json.loads((Path(summary["report"]).parent / "report.json").read_text()))
        out.print(f"Report: {summary['report']}", soft_wrap=True)
    if summary["release"]:
        out.print(f"Serve it: stillroom serve {summary['release'].rpartition('-')[0]}")


def selected(steps: list[Any], until: str | None, only: str | None) -> list[Any]:
    """The steps up to the last of stage `until`, or those of stage `only`."""
    stages = list(dict.fromkeys(step.stage for step in steps))
    for option, value in (("--until", until), ("--only", only)):
        if value is not None and value not in stages:
            raise UserError(option, f"{value!r} is no stage", f"Use one of {', '.join(stages)}")
    if only is not None:
        return [step for step in steps if step.stage == only]
    if until is not None:
        last = max(i for i, step in enumerate(steps) if step.stage == until)
        return steps[: last + 1]
    return steps


def _summary(done: list[Any]) -> dict[str, Any]:
    by_stage = {produced.step.stage: produced for produced in done}
    report = by_stage.get("report")
    release = by_stage.get("release")
    gate = None
    if release is not None:
        content = json.loads((release.artifact.path / "release.json").read_text())
        gate = {key: content["gate"][key] for key in ("passed", "failures")}
    return {
        "artifacts": {
            stage: {
                "ref": produced.artifact.ref,
                "path": str(produced.artifact.path),
                "key": produced.artifact.key,
                "reused": produced.reused,
                "run": produced.artifact.manifest["made_by"].get("run"),
                "seconds": round(produced.seconds, 3),
            }
            for stage, produced in by_stage.items()
        },
        "report": None if report is None else str(report.artifact.path / "report.html"),
        "release": None if release is None else release.artifact.ref,
        "gate": gate,
    }


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gate: Annotated[bool, typer.Option("--gate/--no-gate")] = True,
    as_json: AsJson = False,
) -> None:
    """Print what would run, what exists, and why a key changed.

    Example: stillroom plan jobs/recipes/quickstart.yaml student.phases.0.learning_rate=1e-4
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline, why
    from stillroom.storage.artifacts import Store

    read = read_recipe(recipe, overrides or [])
    store = Store(read.root)
    rows: list[dict[str, Any]] = []
    for step in pipeline(read, gate=gate):
        exists = store.exists(step.stage, step.name, step.key)
        because = "" if exists else why(step, store)
        rows.append({"stage": step.stage, "key": step.key, "exists": exists, "why": because})
    if as_json:
        print(json.dumps({"steps": rows}))
        return
    shown = Table("stage", "key", "", "why")
    for row in rows:
        mark = "[green]exists[/]" if row["exists"] else "[yellow]to make[/]"
        shown.add_row(row["stage"], row["key"], mark, row["why"])
    out.print(shown)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Instead, print its GPU hours and what they cost.")
    ] = False,
    mfu: Annotated[
        float | None, typer.Option(help="With --cost: the share of a GPU's peak that is reached.")
    ] = None,
    texts: Annotated[
        int | None, typer.Option(help="With --cost: how many texts the corpus holds.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate a recipe with its data, models, disk and cluster; nothing expensive.

    Example: stillroom check my-recipe.yaml
    Example: stillroom check jobs/recipes/e5-mistral-7b.yaml --cost --texts 4000000
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline
    from stillroom.preflight.recipe import check_recipe

    read = read_recipe(recipe, overrides or [])
    if not cost and (mfu is not None or texts is not None):
        option = "--mfu" if mfu is not None else "--texts"
        raise UserError(option, "says nothing without --cost", "Add --cost, or leave it out")
    if cost:
        from stillroom.preflight.costs import MFU, costs

        _print_costs(costs(read, mfu=MFU if mfu is None else mfu, texts=texts), as_json)
        return
    _print_findings(check_recipe(read, pipeline(read)), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at versions, GPUs, compilers, models, storage and the cluster.

    Example: stillroom doctor
    """
    from stillroom.preflight.machine import examine_machine

    findings = list(examine_machine())
    _print_findings(findings, as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _print_costs(found: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"cost": found.as_json()}))
        return
    columns = [
        (f"{p.provider} {kind.replace('_', '-')}", p, kind)
        for p in found.prices
        for kind in ("on_demand", "spot")
    ]
    shown = Table("", "EFLOP", "GPUs", "GPU hours", "hours", *(title for title, _, _ in columns))
    notes = []
    for part in found.parts:
        hours = found.hours(part)
        if hours is None:
            notes.append(f"{part.what}: {part.why or 'the work of CPUs'}, and so not counted.")
            continue
        money = [f"${hours * getattr(price, kind):,.2f}" for _, price, kind in columns]
        shown.add_row(
            part.what, f"{part.flops / 1e18:,.1f}", f"{part.gpus:g}", f"{hours:,.1f}",
            f"{hours / part.gpus:,.1f}", *money,
        )  # fmt: skip
    money = [f"${found.total * getattr(price, kind):,.2f}" for _, price, kind in columns]
    shown.add_row("[bold]in all[/]", "", "", f"[bold]{found.total:,.1f}[/]", "", *money)
    out.print(shown)
    for note in notes:
        out.print(note, soft_wrap=True)
    out.print(
        f"{found.gpu} at {found.mfu:.0%} of its peak (--mfu); list prices a GPU hour, read on "
        f"{found.read_on}: without restarts, idle time, CPUs, storage and traffic.",
        soft_wrap=True,
    )


def _print_findings(findings: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"findings": [vars(finding) for finding in findings]}))
        return
    for finding in findings:
        mark = "[green]ok [/]" if finding.ok else "[red]bad[/]"
        out.print(f"{mark} {finding.what}: {finding.detail}", soft_wrap=True)
        if not finding.ok:
            out.print(f"    {finding.fix}", soft_wrap=True)
