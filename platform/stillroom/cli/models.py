"""Commands that take a model."""

import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillroom.cli.app import (
    AsJson,
    KeyVariable,
    Root,
    TrustRemoteCode,
    app,
    load_model,
    out,
    print_report,
    stdout_to_stderr,
)
from stillroom.errors import UserError


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Artifact, folder, hub id or package: name.")],
    data: Annotated[Path, typer.Option(help="A folder in BEIR layout, or one of such folders.")],
    passages_by: Annotated[
        str | None,
        typer.Option(help="A model of the same space that encodes the passages: the teacher."),
    ] = None,
    dims: Annotated[str, typer.Option(help="Other prefixes of the vectors to try: 128,64.")] = "",
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the scores there; - prints.")
    ] = None,
    key_variable: KeyVariable = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = "runs",
) -> None:
    """Measure a model's retrieval on evaluation sets, with whole vectors and with smaller ones.

    Example: stillroom evaluate student/quickstart --data my-sets --html scores.html
    """
    if not all(size.strip().isdecimal() for size in dims.split(",") if dims):
        raise UserError("--dims", f"{dims!r} is no list of sizes", "Write it as 128,64")
    others = [int(size) for size in dims.split(",") if dims]
    from stillroom.data.readers.beir import read_sets

    sets = read_sets(data)
    from stillroom.evaluation.evaluate import encode_asymmetric, encode_sets, entry, shared_dims
    from stillroom.evaluation.small_vectors import measure_small, sizes_to_measure

    load = functools.partial(
        load_model, root=root, trust_remote_code=trust_remote_code, key_variable=key_variable
    )
    encoder = load(model)
    # Whatever is wrong is said before minutes of encoding.
    if passages_by is None:
        name, role = model, "teacher" if model.startswith("teacher/") else "student"
        sizes = sizes_to_measure(encoder.contract.dims, others)
        encoded = encode_sets(encoder, role, sets)
    else:
        name, role = f"{model} asks, {passages_by} answers", "asymmetric"
        teacher = load(passages_by)
        sizes = sizes_to_measure(shared_dims(encoder.contract, teacher.contract), others)
        encoded = encode_asymmetric(encoder, teacher, sets)
    measured = entry(role, encoder.parameters_total, encoded, sets)
    report = {
        "sets": {
            of: {"queries": len(kept.qrels), "passages": len(kept.passages)}
            for of, kept in sets.items()
        },
        "models": {name: {**measured, "vectors": measure_small(encoded, sets, sizes)}},
    }
    if html is not None:
        from stillroom.reports.render import evaluation_page

        html.write_text(evaluation_page(report, name), encoding="utf-8")
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
    key_variable: KeyVariable = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = "runs",
) -> None:
    """Turn lines of standard input into vectors, one JSON object a line.

    Example: echo 'how do I sort a list?' | stillroom encode student/quickstart --query
    """
    encoder = load_model(
        model, root, trust_remote_code=trust_remote_code, key_variable=key_variable
    )
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
    from stillroom.config.load import validated
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
    from stillroom.cluster.session import disconnect
    from stillroom.stages.negatives.files import mine_files

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
    trust_remote_code: TrustRemoteCode = False,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys, beside those in STILLROOM_API_KEYS.")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Without keys: let other machines call, too.")
    ] = False,
    root: Root = "runs",
) -> None:
    """Serve a release with Ray Serve on this machine, until stopped.

    Example: stillroom serve release/quickstart --port 8000
    """
    from stillroom.serving.local_server import serve_release

    keys = None if keys_file is None else str(keys_file.resolve())
    serve_release(
        release,
        host=host,
        port=port,
        root=root,
        keys_file=keys,
        no_auth=no_auth,
        trust_remote_code=trust_remote_code,
    )
