"""The `stillroom` command: parse, call, print. Torch and Ray are imported late."""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from stillroom.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a large text embedder into a small one, on your own data, and serve both.\n\n"
    "Add --debug to any command to see where an error came from.",
)
runs_app = typer.Typer()
app.add_typer(runs_app, name="runs", invoke_without_command=True)
data_app = typer.Typer(no_args_is_help=True, help="Look at data, clean it, have some written.")
app.add_typer(data_app, name="data")

out = Console()
err = Console(stderr=True)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Overrides of its fields.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Root = Annotated[
    str, typer.Option(envvar="STILLROOM_ROOT", help="Where artifacts live: a folder or a URI.")
]


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

    Example: stillroom run jobs/recipes/quickstart.yaml student.steps=200
    """
    from stillroom.checks import check_recipe
    from stillroom.config.reading import read_recipe
    from stillroom.plan import pipeline

    if dry_run:
        plan(recipe, overrides, gate=gate, as_json=as_json)
        return
    read = read_recipe(recipe, overrides or [])
    steps = selected(pipeline(read, gate=gate), until, only)
    check_recipe(read, steps)
    from stillroom.stages.run import disconnect
    from stillroom.stages.run import run as produce_all

    done = []
    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        for produced in produce_all(read, steps):
            done.append(produced)
            if not as_json:
                took = "exists already" if produced.reused else f"{produced.seconds:,.0f} s"
                out.print(f"[bold]{produced.step.stage:10}[/] {produced.artifact.ref}  {took}")
        disconnect()  # only then has the last line of a worker been printed
    summary = _summary(done)
    if as_json:
        print(json.dumps(summary))
        return
    if all(produced.reused for produced in done):
        out.print("Nothing to do: every artifact exists.")
    if summary["report"]:
        _print_report(json.loads((Path(summary["report"]).parent / "report.json").read_text()))
        out.print(f"Report: {summary['report']}", soft_wrap=True)
    if summary["release"]:
        out.print(f"Serve it: stillroom serve {summary['release'].rpartition('-')[0]}")


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keeps standard output for the document: libraries, and Ray for its workers, print there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


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
                "seconds": round(produced.seconds, 3),
            }
            for stage, produced in by_stage.items()
        },
        "report": None if report is None else str(report.artifact.path / "report.html"),
        "release": None if release is None else release.artifact.ref,
        "gate": gate,
    }


def _print_report(report: dict[str, Any]) -> None:
    from stillroom.measure.render import table

    header, *rows = table(report)
    shown = Table(*header, title=None)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gate: Annotated[bool, typer.Option("--gate/--no-gate")] = True,
    as_json: AsJson = False,
) -> None:
    """Print what would run, what exists, and why a key changed.

    Example: stillroom plan jobs/recipes/quickstart.yaml student.learning_rate=1e-4
    """
    from stillroom.artifacts import Store
    from stillroom.config.reading import read_recipe
    from stillroom.plan import pipeline, why

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
def check(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a recipe with its data, models, disk and cluster; nothing expensive.

    Example: stillroom check my-recipe.yaml
    """
    from stillroom.checks import check_recipe
    from stillroom.config.reading import read_recipe
    from stillroom.plan import pipeline

    read = read_recipe(recipe, overrides or [])
    _print_findings(check_recipe(read, pipeline(read)), as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at versions, GPUs, compilers, models, storage and the cluster.

    Example: stillroom doctor
    """
    from stillroom.checks import examine_machine

    findings = list(examine_machine())
    _print_findings(findings, as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _print_findings(findings: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"findings": [vars(finding) for finding in findings]}))
        return
    for finding in findings:
        mark = "[green]ok [/]" if finding.ok else "[red]bad[/]"
        out.print(f"{mark} {finding.what}: {finding.detail}", soft_wrap=True)
        if not finding.ok:
            out.print(f"    {finding.fix}", soft_wrap=True)


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


@data_app.command()
def describe(
    path: Annotated[
        str, typer.Argument(help="A file, folder or glob, here or under s3:// or gs://; hub:NAME.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Count lengths in this model's tokens, not in words.")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a page with plots there.")
    ] = None,
    root: Root = "runs",
) -> None:
    """Say what data is like: its layout, counts, lengths, scripts, repeated texts, wrong rows.

    Example: stillroom data describe pairs.jsonl --model student/quickstart --html pairs.html
    """
    from stillroom.artifacts import Store
    from stillroom.encoders.locate import of_artifact
    from stillroom.encoders.tokens import token_counter
    from stillroom.measure import describe as described

    count = None if model is None else token_counter(of_artifact(model, Store(root)))
    found = described.describe(path, model=model, count=count)
    if html is not None:
        html.write_text(described.page(found), encoding="utf-8")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for title, (header, *rows) in described.tables(found):
        shown = Table(*header, title=title, title_justify="left")
        for row in rows[:20]:
            shown.add_row(*map(escape, row))
        if len(rows) > 20:
            shown.add_row(f"… and {len(rows) - 20:,} more")
        out.print(shown)
    for example in found["examples"]:
        for name, text in example.items():
            out.print(f"[bold]{name}[/] {escape(' '.join(text.split()))}", soft_wrap=True)
        out.print()


@data_app.command()
def synthesize(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take at most; ask nobody.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have a language model write the pairs of a recipe's corpus.synthetic.

    Example: stillroom data synthesize my-recipe.yaml --dry-run
    """
    from stillroom.config.reading import read_recipe
    from stillroom.plan import synthetic

    read = read_recipe(recipe, overrides or [])
    steps = synthetic(read)
    if not steps:
        raise UserError(recipe, "has no corpus.synthetic", "Add the section")
    if dry_run:
        from stillroom.stages.synthetic import estimate

        _print_estimate(estimate(**steps[0].args), as_json)
        return
    from stillroom.stages.run import run as produce_all

    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        [produced] = produce_all(read, steps)
    made = produced.artifact
    told = made.manifest["made_by"]["summary"]
    summary = {"ref": made.ref, "path": str(made.path / "pairs.jsonl"), **told}
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    for name, value in summary.items():
        out.print(f"{name}: {value}", soft_wrap=True, highlight=False, markup=False)


def _print_estimate(parts: list[dict[str, Any]], as_json: bool) -> None:
    counted = ("calls", "tokens_in", "tokens_out", "cost")
    total = {name: sum(part[name] for part in parts) for name in counted}
    if as_json:
        print(json.dumps({"parts": parts, "total": total}))
        return
    shown = Table("part", "calls", "tokens in", "tokens out", "cost")
    for part in [*parts, {"part": "at most, in all", **total}]:
        *numbers, cost = (part[name] for name in counted)
        shown.add_row(part["part"], *(f"{number:,}" for number in numbers), f"{cost:,.2f}")
    out.print(shown)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Artifact, folder, hub id or package: name.")],
    data: Annotated[Path, typer.Option(help="A folder in BEIR layout, or one of such folders.")],
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the scores there; - prints.")
    ] = None,
    root: Root = "runs",
) -> None:
    """Measure a model's retrieval on evaluation sets.

    Example: stillroom evaluate student/quickstart --data my-sets --json scores.json
    """
    from stillroom.measure.sets import read_sets

    sets = read_sets(data)
    from stillroom.measure.model import measure

    encoder = _load(model, root)
    role = "teacher" if model.startswith("teacher/") else "student"
    report = {
        "sets": {
            name: {"queries": len(kept.qrels), "passages": len(kept.passages)}
            for name, kept in sets.items()
        },
        "models": {model: measure(encoder, role, sets)},
    }
    if json_out is None:
        _print_report(report)
    elif str(json_out) == "-":
        print(json.dumps(report))
    else:
        json_out.write_text(json.dumps(report, indent=2) + "\n")


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="Artifact, folder, hub id or package: name.")],
    query: Annotated[
        bool, typer.Option("--query/--passage", help="Which of the model's prompts to use.")
    ] = False,
    dims: Annotated[int | None, typer.Option(help="A Matryoshka prefix.")] = None,
    root: Root = "runs",
) -> None:
    """Turn lines of standard input into vectors, one JSON object a line.

    Example: echo 'how do I sort a list?' | stillroom encode student/quickstart --query
    """
    encoder = _load(model, root)
    texts = [line.rstrip("\n") for line in sys.stdin]
    vectors = encoder.encode(texts, "query" if query else "passage", dims=dims)
    for text, vector in zip(texts, vectors, strict=True):
        print(json.dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Artifact, folder, hub id or package: name.")],
    format: Annotated[str, typer.Option(help="sentence-transformers or onnx.")],
    folder: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    root: Root = "runs",
) -> None:
    """Write a model in a format that other programs open.

    Example: stillroom export student/quickstart --format onnx --out exported
    """
    from stillroom.encoders.export import FORMATS

    if format not in FORMATS:
        raise UserError("--format", f"{format!r} is unknown", f"Use one of {', '.join(FORMATS)}")
    if folder.exists():
        raise UserError(f"--out {folder}", "is there already", "Name a new folder")
    encoder = _load(model, root)
    # Under another name until it is whole.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        FORMATS[format](encoder, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    out.print(f"{model} is in {folder}")


@data_app.command()
def decontaminate(
    pairs: Annotated[list[Path], typer.Option(help="Files of pairs; may be given again.")],
    against: Annotated[
        list[Path], typer.Option(help="A folder in BEIR layout, or of such; may be given again.")
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="JSONL for the pairs that are left.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Where every hit is shown: a .html or a .json file.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Every passage is tested, not only those that answer.")
    ] = False,
    ngram: Annotated[int, typer.Option(min=8, help="Words in a row that are a match.")] = 13,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of the shorter text's words.")
    ] = 0.6,
    listed: Annotated[int, typer.Option(min=0, help="Hits of each set in the report.")] = 1000,
    embedder: Annotated[
        str | None, typer.Option(help="A model, to find what says the same in other words.")
    ] = None,
    similarity: Annotated[float, typer.Option(help="The least cosine for that.")] = 0.95,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Find training pairs that give evaluation sets away, and drop them.

    Example: stillroom data decontaminate --pairs train.jsonl --against my-sets --out clean.jsonl
    --report contamination.html
    """
    if report is not None and report.suffix not in (".html", ".json"):
        raise UserError(f"--report {report}", "is neither HTML nor JSON", "Name it so")
    from stillroom.measure.contamination import render
    from stillroom.measure.sets import read_sets
    from stillroom.text.contamination import clean_files
    from stillroom.text.decontaminate import Judged

    sets: dict[str, Any] = {}
    for folder in against:
        read = read_sets(folder)
        if both := sorted(read.keys() & sets.keys()):
            raise UserError(f"--against {folder}", f"{both[0]!r} is there twice", "Rename one")
        sets |= read
    embed = None if embedder is None else _load(embedder, root).encode
    judged = Judged.of(sets, whole=sets if whole else (), ngram=ngram, share=share, embed=embed)
    found = clean_files(
        pairs,
        judged,
        sets,
        out_file,
        listed=listed,
        embed=embed,
        similarity=similarity,
    ).as_json()
    if report is not None:
        name = ", ".join(file.name for file in pairs)
        text = json.dumps(found, ensure_ascii=False, indent=2) + "\n"
        report.write_text(render(found, name) if report.suffix == ".html" else text, "utf-8")
    if as_json:
        print(json.dumps({key: value for key, value in found.items() if key != "hits"}))
        return
    shown = Table("source", "set", "match", "pairs")
    for row in found["counts"]:
        shown.add_row(row["source"], row["set"], row["kind"], f"{row['pairs']:,}")
    out.print(shown)
    became = "dropped" if out_file else "found"
    out.print(f"{found['found']:,} of {sum(found['checked'].values()):,} pairs {became}")


@app.command()
def mine(
    model: Annotated[str, typer.Argument(help="The miner: a model's name, or bm25.")],
    pairs: Annotated[list[Path], typer.Option(help="A file of queries and positives; repeatable.")],
    to: Annotated[Path, typer.Option("--out", help="A JSONL file that is not there yet.")],
    passages: Annotated[
        list[Path] | None,
        typer.Option(help="A file to mine from beside the pairs' own passages; repeatable."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another miner. The first that is a model scores what all find."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="A set in BEIR layout, whose passages are never negatives; repeatable."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="sentence-transformers, flagembedding or tevatron.")
    ] = "sentence-transformers",
    scores: Annotated[
        bool, typer.Option("--scores", help="Also write what passages score.")
    ] = False,
    per_query: Annotated[int, typer.Option(help="Negatives of a query.")] = 4,
    sample_from: Annotated[int, typer.Option(help="Of so many of the best that remain.")] = 16,
    skip_first: Annotated[int, typer.Option(help="Passing over so many.")] = 0,
    strategy: Annotated[str, typer.Option(help="random or top.")] = "random",
    max_share: Annotated[
        float, typer.Option(help="The most of its positive's score that a negative has.")
    ] = 0.95,
    margin: Annotated[
        float | None, typer.Option(help="So much less than its positive it scores.")
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="The most that it scores.")] = None,
    rescore: Annotated[
        str | None, typer.Option(help="A cross-encoder whose scores decide instead.")
    ] = None,
    actors: Annotated[int, typer.Option(help="Processes.")] = 1,
    cpus: Annotated[float, typer.Option(help="Of each.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="Of each.")] = 0.0,
    memory: Annotated[float, typer.Option(help="GiB that each searches in.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random draw.")] = 17,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Mine hard negatives for your own pairs, without a recipe.

    Example: stillroom mine teacher/quickstart --pairs pairs.jsonl --out triplets.jsonl
    """
    from stillroom.config.reading import validated
    from stillroom.config.recipe import Negatives
    from stillroom.config.scale import Scale

    rule = {
        "miner": [model, *(also or [])],
        "max_share_of_positive": max_share,
        "margin": margin,
        "max_score": max_score,
        "skip_first": skip_first,
        "sample_from": sample_from,
        "per_query": per_query,
        "strategy": strategy,
        "rescore": rescore,
    }
    section = validated(Negatives, rule, "stillroom mine")
    pool = {"actors": actors, "cpus": cpus, "gpus": gpus}
    parts = {"vectors": pool, "negatives": {**pool, "memory_gib": memory}}
    scale = validated(Scale, parts, "stillroom mine")
    from stillroom.stages.mine import mine_files
    from stillroom.stages.run import disconnect

    with _stdout_to_stderr() if as_json else contextlib.nullcontext():
        summary = mine_files(
            section.miners,
            pairs=pairs,
            passages=passages or [],
            evaluation=evaluation or [],
            out=to,
            format=format,
            section=section,
            scored=scores,
            seed=seed,
            root=root,
            scale=scale,
        )
        disconnect()
    if as_json:
        print(json.dumps(summary))
        return
    out.print(f"{summary['kept']:,} negatives of {summary['pairs']:,} pairs are in {to}")
    for reason, count in summary["rejected"].items():
        out.print(f"  rejected: {reason}: {count:,}")


def _load(model: str, root: str) -> Any:
    from stillroom.artifacts import Store
    from stillroom.encoders.locate import of_artifact
    from stillroom.encoders.store import load

    return load(of_artifact(model, Store(root)))


@app.command()
def serve(
    release: Annotated[str, typer.Argument(help="release/NAME, or a release's folder.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8000,
    root: Root = "runs",
) -> None:
    """Serve a release with Ray Serve on this machine, until stopped.

    Example: stillroom serve release/quickstart --port 8000
    """
    from stillroom.serving.app import serve_release

    serve_release(release, host=host, port=port, root=root)


def main() -> None:
    """Runs the command line; exits with 0 for done, 1 for failed, 2 for what the user can mend."""
    debug = "--debug" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--debug"]
    _log_to_stderr()
    try:
        app(words)  # which exits by itself, with 2 for bad usage
    except Exception as fault:
        if debug:
            raise
        sys.exit(_explain(fault))


def _explain(fault: BaseException) -> int:
    """Says what went wrong in one line; the code to exit with."""
    cause: BaseException | None = fault
    while cause is not None:  # Ray and its trainers wrap what their workers raised
        if isinstance(cause, UserError):
            err.print(f"error: {cause}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1 if type(cause).__name__ == "GateFailed" else 2
        cause = getattr(cause, "cause", None) or cause.__cause__
    text = str(fault).strip() or repr(fault)
    err.print(
        f"failed: {type(fault).__name__}: {text.splitlines()[-1]}",
        style="red",
        markup=False,
        soft_wrap=True,
    )
    err.print("Add --debug to see where.")
    return 1


def _log_to_stderr() -> None:
    handler: logging.Handler = logging.StreamHandler()
    if err.is_terminal:
        handler = RichHandler(console=err, show_path=False)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.INFO)
    log = logging.getLogger("stillroom")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    quieter = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # they are noise beside our own lines
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS_ALLOW_REGEX": r"^step \d",  # every line of training's progress is news
    }
    if not err.is_terminal:
        quieter["TQDM_DISABLE"] = "1"  # the bars of libraries garble a log
    for name, value in quieter.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
