"""`stillroom data`: data before it is trained on."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from stillroom.cli.app import (
    AsJson,
    Overrides,
    RecipePath,
    Root,
    data_app,
    load_model,
    out,
    stdout_to_stderr,
)
from stillroom.errors import UserError


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
    from stillroom.encoders.model_names import of_artifact
    from stillroom.encoders.tokens.count import token_counter
    from stillroom.reports import describe as described
    from stillroom.storage.artifacts import Store

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
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import synthetic

    read = read_recipe(recipe, overrides or [])
    steps = synthetic(read)
    if not steps:
        raise UserError(recipe, "has no corpus.synthetic", "Add the section")
    if dry_run:
        from stillroom.stages.synthetic.stage import estimate

        _print_estimate(estimate(**steps[0].args), as_json)
        return
    from stillroom.pipeline.run import run as produce_all

    with stdout_to_stderr() if as_json else contextlib.nullcontext():
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
    from stillroom.data.cleaning.contamination import clean_files
    from stillroom.data.cleaning.decontaminate import Judged
    from stillroom.data.readers.beir import read_sets
    from stillroom.reports.contamination import render

    sets: dict[str, Any] = {}
    for folder in against:
        read = read_sets(folder)
        if both := sorted(read.keys() & sets.keys()):
            raise UserError(f"--against {folder}", f"{both[0]!r} is there twice", "Rename one")
        sets |= read
    embed = None if embedder is None else load_model(embedder, root).encode
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
