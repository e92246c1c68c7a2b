"""Commands that take a model."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillroom.cli.app import AsJson, Root, app, load_model, out, print_report, stdout_to_stderr


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

    encoder = load_model(model, root)
    role = "teacher" if model.startswith("teacher/") else "student"
    report = {
        "sets": {
            name: {"queries": len(kept.qrels), "passages": len(kept.passages)}
            for name, kept in sets.items()
        },
        "models": {model: measure(encoder, role, sets)},
    }
    if json_out is None:
        print_report(report)
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
    encoder = load_model(model, root)
    texts = [line.rstrip("\n") for line in sys.stdin]
    vectors = encoder.encode(texts, "query" if query else "passage", dims=dims)
    for text, vector in zip(texts, vectors, strict=True):
        print(json.dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False))


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

    with stdout_to_stderr() if as_json else contextlib.nullcontext():
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
