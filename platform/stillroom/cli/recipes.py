"""`stillroom run`, `plan` and `check`: commands that take a recipe."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.cli.app import (
    AsJson,
    Overrides,
    RecipePath,
    out,
    print_findings,
    print_json,
    print_report,
    print_table,
    require_lasting_root,
    stdout_to_stderr,
)
from stillroom.errors import UserError

if TYPE_CHECKING:
    from stillroom.pipeline.run import StepResult
    from stillroom.pipeline.step import Step
    from stillroom.preflight.costs import Costs
    from stillroom.preflight.sizes import Sizes

Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
Only = Annotated[str | None, typer.Option(metavar="STAGE", help="Make only this stage.")]

Gate = Annotated[
    bool,
    typer.Option("--gate/--no-gate", help="Release only a student that passes the recipe's gate."),
]


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Until = None,
    only: Only = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan instead.")] = False,
    gate: Gate = True,
    as_json: AsJson = False,
) -> None:
    """Make a recipe's artifacts, up to a release.

    Existing artifacts are reused. A stopped run continues where it stopped.

    Example: stillroom run my.yaml student.phases.0.steps=200
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline
    from stillroom.preflight.recipe import check_recipe

    if dry_run:
        plan(recipe, overrides, gate=gate, as_json=as_json)
        return
    read = read_recipe(recipe, overrides or [])
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # set by Ray in the jobs that it starts
        require_lasting_root(read.root)
    steps = select_steps(pipeline(read, gate=gate), until, only)
    check_recipe(read, steps)
    from stillroom.pipeline.run import run_steps

    done = []
    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        for produced in run_steps(read, steps):
            done.append(produced)
            if not as_json:
                took = "exists already" if produced.reused else f"{produced.seconds:,.0f} s"
                out.print(f"[bold]{produced.step.stage:10}[/] {produced.artifact.ref}  {took}")
        if not all(produced.reused for produced in done):
            from stillroom.cluster.session import disconnect

            disconnect()  # by then Ray has printed all lines of workers
    summary = _summary(done)
    if as_json:
        print_json(summary)
        return
    if all(produced.reused for produced in done):
        out.print("Nothing to do: every artifact exists.")
    if summary["report"]:
        print_report(json.loads((Path(summary["report"]).parent / "report.json").read_text()))
        out.print(f"Report: {summary['report']}", soft_wrap=True)
    if summary["release"]:
        out.print(f"Serve it: stillroom serve {summary['release'].rpartition('-')[0]}")


def select_steps(steps: "list[Step]", until: str | None, only: str | None) -> "list[Step]":
    """The steps up to the last of stage `until`, or those of stage `only`.

    Raises:
        UserError: when no step belongs to the stage.
    """
    stages = list(dict.fromkeys(step.stage for step in steps))
    for option, value in (("--until", until), ("--only", only)):
        if value is not None and value not in stages:
            raise UserError(option, f"{value!r} is not a stage", f"Use one of {', '.join(stages)}")
    if only is not None:
        return [step for step in steps if step.stage == only]
    if until is not None:
        last = max(i for i, step in enumerate(steps) if step.stage == until)
        return steps[: last + 1]
    return steps


def _summary(done: "list[StepResult]") -> dict[str, Any]:
    """The document of `run --json`."""
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


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gate: Gate = True,
    as_json: AsJson = False,
) -> None:
    """Print which artifacts exist, and why the others must be made.

    Example: stillroom plan my.yaml student.phases.0.learning_rate=1e-4
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.explain import why_missing
    from stillroom.pipeline.plan import pipeline
    from stillroom.preflight.elsewhere import costs_elsewhere
    from stillroom.storage.artifacts import Store

    read = read_recipe(recipe, overrides or [])
    store = Store(read.root)
    rows: list[dict[str, Any]] = []
    for step in pipeline(read, gate=gate):
        exists = store.exists(step.stage, step.name, step.key)
        why = "" if exists else why_missing(step, store)
        rows.append({"stage": step.stage, "key": step.key, "exists": exists, "why": why})
    if as_json:
        print_json({"steps": rows, "elsewhere": list(costs_elsewhere(read))})
        return
    marks = {True: "[green]exists[/]", False: "[yellow]to make[/]"}
    print_table(
        ["stage", "key", "", "why"],
        [[row["stage"], row["key"], marks[row["exists"]], row["why"]] for row in rows],
    )
    for note in costs_elsewhere(read):
        out.print(note, soft_wrap=True)


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Estimate GPU hours and their price instead.")
    ] = False,
    mfu: Annotated[
        float | None,
        typer.Option(help="With --cost: the fraction of a GPU's peak FLOP/s that is reached."),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            help="Estimate bytes, memory and hours of every stage instead, for so many queries and "
            "passages; with --cost, add the cost of embedding them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe before anything expensive runs.

    Its fields, data, models and memory, the disk, and the cluster; and whether the models'
    tokenizers know the letters of the texts: above max_unknown, a field of the recipe, it refuses
    them.

    Example: stillroom check my.yaml

    Example: stillroom check jobs/recipes/student-6.yaml --texts 20000000

    Example: stillroom check jobs/recipes/e5-mistral-7b.yaml --cost --texts 4000000
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline
    from stillroom.preflight.recipe import check_recipe

    read = read_recipe(recipe, overrides or [])
    if not cost and mfu is not None:
        raise UserError("--mfu", "has no effect without --cost", "Add --cost, or leave it out")
    if cost:
        from stillroom.preflight.costs import MFU, estimate_costs

        estimate = estimate_costs(read, mfu=MFU if mfu is None else mfu, texts=texts)
        _print_costs(estimate, as_json)
        return
    if texts is not None:
        from stillroom.preflight.core_speed import measure_core_flops
        from stillroom.preflight.sizes import estimate_sizes

        _print_sizes(estimate_sizes(read, texts, core_flops=measure_core_flops()), as_json)
        return
    print_findings(check_recipe(read, pipeline(read)), as_json)


def _print_costs(estimate: "Costs", as_json: bool) -> None:
    if as_json:
        print_json({"cost": estimate.as_json()})
        return
    columns = [
        (f"{price.provider} {kind.replace('_', '-')}", price, kind)
        for price in estimate.prices
        for kind in ("on_demand", "spot")
    ]
    rows, notes = [], []
    for part in estimate.parts:
        hours = estimate.hours(part)
        if hours is None:
            notes.append(f"{part.what}: {part.why or 'runs on CPUs'}, so it is not counted.")
            continue
        money = [f"${hours * getattr(price, kind):,.2f}" for _, price, kind in columns]
        rows.append(
            [
                part.what,
                f"{(part.flops or 0) / 1e18:,.1f}",
                f"{part.gpus:g}",
                f"{hours:,.1f}",
                f"{hours / part.gpus:,.1f}",
                *money,
            ]
        )
    money = [f"${estimate.total * getattr(price, kind):,.2f}" for _, price, kind in columns]
    rows.append(["[bold]total[/]", "", "", f"[bold]{estimate.total:,.1f}[/]", "", *money])
    titles = [title for title, _, _ in columns]
    print_table(["", "EFLOP", "GPUs", "GPU hours", "hours", *titles], rows)
    for note in notes:
        out.print(note, soft_wrap=True)
    out.print(
        f"{estimate.gpu} at {estimate.mfu:.0%} of its peak (--mfu), list prices per GPU hour of "
        f"{estimate.read_on}. Not counted: restarts, idle time, CPUs, storage, traffic.",
        soft_wrap=True,
    )


def _print_sizes(sizes: "Sizes", as_json: bool) -> None:
    if as_json:
        print_json({"sizes": sizes.as_json()})
        return
    rows, notes = [], []
    for stage in sizes.stages:
        processes = [
            f"{stage.processes.get(kind, 1)} {kind} {format_bytes(size)}"
            for kind, size in stage.memory.items()
            if stage.processes.get(kind, 1)
        ]
        hours = sizes.hours[stage.what]
        disks = [format_bytes(size) for size in (sizes.driver_disk(stage), sizes.copies(stage))]
        disks = disks if sizes.remote else []
        rows.append(
            [
                stage.what,
                format_bytes(stage.stored),
                format_bytes(stage.shared + (0 if sizes.remote else stage.local)),
                *disks,
                ", ".join(processes),
                format_bytes(stage.total_memory) if processes else "",
                "" if hours.value is None else f"{hours.value:,.2f}",
            ]
        )
        notes += [f"{stage.what}: {hours.basis}"] if hours.basis else []
    where = ["driver's disk", "other nodes' disks"] if sizes.remote else []
    memory = ["memory of its processes", "on one node"]
    print_table(["", "stored", "while it runs", *where, *memory, "hours"], rows)
    texts = sizes.texts
    out.print(
        f"{texts.pairs:,} queries of {texts.query_bytes:.0f} bytes and {texts.passages:,} passages "
        f"of {texts.passage_bytes:.0f}: {sizes.sample.basis}. The root, "
        f"{'in object storage' if sizes.remote else 'on disk'}, takes {format_bytes(sizes.stored)} "
        f"in the end and {format_bytes(sizes.most_at_once)} at most. Mapped files are not counted "
        "as memory.",
        soft_wrap=True,
    )
    for model in sizes.unknown:
        out.print(f"{model}: its architecture is unknown, so it counts as nothing.", soft_wrap=True)
    out.print(
        f"Hours, for matrix products alone, with each text at its longest: {'; '.join(notes)}.",
        soft_wrap=True,
    )


def format_bytes(size: float) -> str:
    """A number of bytes with a unit, such as 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if size >= 10 or unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
