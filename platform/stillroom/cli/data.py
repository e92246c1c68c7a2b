"""`stillroom data`: look at data, generate it and clean it before training."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from stillroom.cli.app import (
    AsJson,
    MinScore,
    Overrides,
    RecipePath,
    Root,
    load_model,
    out,
    print_json,
    print_table,
    stdout_to_stderr,
)
from stillroom.errors import UserError
from stillroom.storage.root import ROOT_FOLDER

MAX_ROWS = 20  # of a table, on a terminal


def describe(
    path: Annotated[
        str,
        typer.Argument(help="A file, folder or glob, local, s3:// or gs://; or hub:NAME."),
    ],
    model: Annotated[
        str | None, typer.Option(help="Measure lengths in this model's tokens instead of words.")
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Also write an HTML page with plots.")
    ] = None,
    root: Root = ROOT_FOLDER,
) -> None:
    """Describe a file or folder of data.

    Shows layouts, counts, text lengths, scripts, repeated texts and invalid rows; with --model,
    also that model's prompts, the tokens around a text, and letters that it does not know.

    Example: stillroom data describe pairs.jsonl --model student/quickstart --html pairs.html
    """
    from stillroom.encoders.model_names import locate_model, resolve_artifact_name
    from stillroom.reports import describe as described
    from stillroom.storage.artifacts import Store

    count, inputs, share = None, None, None
    if model is not None:
        from stillroom.encoders.files.inputs import model_tokenizer, role_inputs
        from stillroom.encoders.tokens.count import token_counter
        from stillroom.encoders.tokens.fit import unknown_share

        named = resolve_artifact_name(model, Store(root))
        count, inputs = token_counter(named), role_inputs(locate_model(named))
        share = partial(unknown_share, model_tokenizer(named))
    description = described.describe(
        path, model=model, count=count, inputs=inputs, unknown_share=share
    )
    if html is not None:
        html.write_text(described.render_description(description), encoding="utf-8")
    if as_json:
        print_json(description)
        return
    for title, (header, *rows) in described.description_tables(description):
        more = [[f"… and {len(rows) - MAX_ROWS:,} more"]] if len(rows) > MAX_ROWS else []
        print_table(header, [*([*map(escape, row)] for row in rows[:MAX_ROWS]), *more], title)
    for example in description["examples"]:
        for name, text in example.items():
            out.print(f"[bold]{name}[/] {escape(' '.join(text.split()))}", soft_wrap=True)
        out.print()


def general(
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write the texts to this JSONL file.")
    ] = None,
    words: Annotated[int | None, typer.Option(min=1, help="Stop at this many words.")] = None,
    texts: Annotated[int | None, typer.Option(min=1, help="Stop at this many texts.")] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--files", help="Your own texts: a path, folder or hub:NAME; repeatable."),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--source", help="Only this source of the machine's texts; repeatable."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Leave out texts of these evaluation sets in BEIR layout; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Gather plain text of many fields from what this machine has.

    That is what corpus.texts trains a student on: dictionaries, manual pages, descriptions of
    packages, docstrings, READMEs, and your own files. Shows counts by source, and lengths.

    Example: stillroom data general --words 20_000_000 --out general.jsonl
    """
    from stillroom.config.corpus import MACHINE_SOURCES
    from stillroom.data.cleaning.contamination_index import ContaminationIndex
    from stillroom.data.general.gather import gather, write_texts
    from stillroom.data.readers.beir import read_beir_sets

    for name in sources or ():
        if name not in MACHINE_SOURCES:
            raise UserError(
                f"--source {name}", "is not a source", f"Use one of {', '.join(MACHINE_SOURCES)}"
            )
    sets = {name: s for folder in against or () for name, s in read_beir_sets(folder).items()}
    index = ContaminationIndex.build(sets, whole=sets) if sets else None
    gathered = gather(
        max_texts=texts,
        max_words=words,
        sources=[name for name in MACHINE_SOURCES if sources is None or name in sources],
        files=files or (),
        is_tested=None if index is None else index.touches_many,
    )
    if out_file is not None:
        write_texts(gathered, out_file)
    summary = gathered.as_json()
    if as_json:
        print_json(summary)
        return
    columns = ("texts", "words", "duplicates", "tested")
    rows = [
        [name, *(f"{counts[column]:,}" for column in columns)]
        for name, counts in summary["sources"].items()
    ]
    print_table(["source", "texts", "words", "repeated", "in a set"], rows)
    lengths = [[length, f"{count:,}"] for length, count in summary["lengths"].items()]
    print_table(["words of a text", "texts"], lengths)
    out.print(
        f"{summary['texts']:,} texts, {summary['words']:,} words, identity {summary['identity']}"
    )


def synthesize(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the maximum cost, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate a recipe's synthetic pairs.

    A language model writes the pairs that corpus.synthetic describes.

    Example: stillroom data synthesize my-recipe.yaml --dry-run
    """
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import synthetic_steps

    read = read_recipe(recipe, overrides or [])
    steps = synthetic_steps(read)
    if not steps:
        raise UserError(recipe, "has no corpus.synthetic section", "Add the section")
    if dry_run:
        from stillroom.stages.synthetic.estimate import estimate_usage

        _print_estimate(estimate_usage(**steps[0].args), as_json)
        return
    from stillroom.pipeline.run import run_steps

    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        [produced] = run_steps(read, steps)
    artifact = produced.artifact
    counts = artifact.manifest["made_by"]["summary"]
    summary = {"ref": artifact.ref, "path": str(artifact.path / "pairs.jsonl"), **counts}
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        out.print(f"{name}: {value}", soft_wrap=True, highlight=False, markup=False)


def _print_estimate(parts: list[dict[str, Any]], as_json: bool) -> None:
    counted = ("calls", "tokens_in", "tokens_out", "cost")
    total = {name: sum(part[name] for part in parts) for name in counted}
    if as_json:
        print_json({"parts": parts, "total": total})
        return
    rows = []
    for part in [*parts, {"part": "total, at most", **total}]:
        *numbers, cost = (part[name] for name in counted)
        rows.append([part["part"], *(f"{number:,}" for number in numbers), f"{cost:,.2f}"])
    print_table(["part", "calls", "tokens in", "tokens out", "cost"], rows)


def decontaminate(
    pairs: Annotated[list[Path], typer.Option(help="A file of training pairs; repeatable.")],
    against: Annotated[
        list[Path],
        typer.Option(help="A folder in BEIR layout, or a folder of such folders; repeatable."),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write the clean pairs to this JSONL file.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write all matches to this .html or .json file.")
    ] = None,
    min_score: MinScore = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Protect all passages of the sets, not only answers.")
    ] = False,
    ngram: Annotated[
        int, typer.Option(min=8, help="Words in a row that count as an overlap.")
    ] = 13,
    min_overlap: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of the shorter text's words in overlaps."),
    ] = 0.6,
    max_listed: Annotated[
        int, typer.Option(min=0, help="Matches per set that the report shows.")
    ] = 1000,
    embedder: Annotated[
        str | None, typer.Option(help="A model that also finds paraphrases of the sets' texts.")
    ] = None,
    min_cosine: Annotated[float, typer.Option(help="Minimum cosine of a paraphrase.")] = 0.95,
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Remove training pairs that contain test data.

    Finds pairs that contain queries or answers of evaluation sets, also in part or edited.

    Example: stillroom data decontaminate --pairs train.jsonl --against my-sets --out clean.jsonl
    --report contamination.html
    """
    if report is not None and report.suffix not in (".html", ".json"):
        raise UserError(
            f"--report {report}", "is neither .html nor .json", "Use one of these extensions"
        )
    from stillroom.data.cleaning.contamination_index import ContaminationIndex
    from stillroom.data.cleaning.decontaminate_files import decontaminate_files
    from stillroom.data.readers.beir import read_beir_sets
    from stillroom.reports.contamination import render_contamination

    sets: dict[str, Any] = {}
    for folder in against:
        read = read_beir_sets(folder)
        if both := sorted(read.keys() & sets.keys()):
            raise UserError(
                f"--against {folder}", f"another set is named {both[0]!r} too", "Rename one"
            )
        sets |= read
    embed = None if embedder is None else load_model(embedder, root).encode
    index = ContaminationIndex.build(
        sets, whole=sets if whole else (), ngram=ngram, share=min_overlap, embed=embed
    )
    result = decontaminate_files(
        pairs,
        index,
        sets,
        out_file,
        min_score=min_score,
        max_listed=max_listed,
        embed=embed,
        similarity=min_cosine,
    ).as_json()
    if report is not None:
        name = ", ".join(file.name for file in pairs)
        text = json.dumps(result, ensure_ascii=False, indent=2) + "\n"
        report.write_text(
            render_contamination(result, name) if report.suffix == ".html" else text, "utf-8"
        )
    if as_json:
        print_json({key: value for key, value in result.items() if key != "hits"})
        return
    print_table(
        ["source", "set", "match", "pairs"],
        [[row["source"], row["set"], row["kind"], f"{row['pairs']:,}"] for row in result["counts"]],
    )
    action = "dropped" if out_file else "found"
    out.print(f"{result['found']:,} of {sum(result['checked'].values()):,} pairs {action}")
