"""`stillroom mine`: hard negatives for your own pairs, without a recipe."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from stillroom.cli.app import AsJson, MinScore, PromptName, Root, out, print_json, stdout_to_stderr
from stillroom.storage.root import ROOT_FOLDER


def mine(
    model: Annotated[
        str, typer.Argument(metavar="MINER", help="The miner: a model's name, or bm25.")
    ],
    pairs: Annotated[list[Path], typer.Option(help="A file of queries and positives; repeatable.")],
    to: Annotated[Path, typer.Option("--out", help="A JSONL file that does not exist yet.")],
    passages: Annotated[
        list[Path] | None,
        typer.Option(help="A file of more passages to mine from; repeatable."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another miner; repeatable. The first model scores all candidates."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="An evaluation set in BEIR layout, whose passages are never negatives; repeatable."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="sentence-transformers, flagembedding or tevatron.")
    ] = "sentence-transformers",
    language: Annotated[
        str, typer.Option(help="The texts' language, for bm25: auto, or a code such as de.")
    ] = "auto",
    scores: Annotated[
        bool, typer.Option("--scores", help="Write the passages' scores too.")
    ] = False,
    per_query: Annotated[int, typer.Option(help="Negatives per query.")] = 4,
    sample_from: Annotated[
        int, typer.Option(help="Draw from this many of the best candidates.")
    ] = 16,
    skip_first: Annotated[int, typer.Option(help="Skip this many of the best candidates.")] = 0,
    strategy: Annotated[str, typer.Option(help="How to draw: random or top.")] = "random",
    max_share_of_positive: Annotated[
        float, typer.Option(help="Maximum score of a negative, as a fraction of its positive's.")
    ] = 0.95,
    absolute_margin: Annotated[
        float | None, typer.Option(help="Minimum margin of the positive's score over a negative's.")
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Maximum score of a negative.")] = None,
    cross_encoder: Annotated[
        str | None, typer.Option(help="A cross-encoder whose scores replace the miner's.")
    ] = None,
    prompt_name: PromptName = None,
    min_score: MinScore = None,
    actors: Annotated[int, typer.Option(help="Processes that embed and search.")] = 1,
    cpus: Annotated[float, typer.Option(help="CPUs per process.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs per process.")] = 0.0,
    memory_gib: Annotated[float, typer.Option(help="Working memory per process.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the random draw.")] = 17,
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Mine hard negatives for your own pairs.

    No recipe is needed: give the pairs, and a model or bm25 as the miner.

    Example: stillroom mine teacher/quickstart --pairs pairs.jsonl --out triplets.jsonl
    """
    from stillroom.config.languages import check_language
    from stillroom.config.recipe import Negatives
    from stillroom.config.scale import Scale
    from stillroom.config.validation import validate

    rules = {
        "miner": [model, *(also or [])],
        "max_share_of_positive": max_share_of_positive,
        "absolute_margin": absolute_margin,
        "max_score": max_score,
        "skip_first": skip_first,
        "sample_from": sample_from,
        "per_query": per_query,
        "strategy": strategy,
        "cross_encoder": cross_encoder,
    }
    section = validate(Negatives, rules, "stillroom mine")
    pool = {"actors": actors, "cpus": cpus, "gpus": gpus}
    parts = {"vectors": pool, "negatives": {**pool, "memory_gib": memory_gib}}
    scale = validate(Scale, parts, "stillroom mine")
    from stillroom.cluster.session import disconnect
    from stillroom.stages.negatives.files import MiningInput, MiningOutput, mine_files

    source = MiningInput(
        pairs, passages or [], evaluation or [], check_language(language, "--language"), min_score
    )
    target = MiningOutput(to, format, scores)
    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        summary = mine_files(
            source, target, section, prompt_name=prompt_name, seed=seed, root=root, scale=scale
        )
        disconnect()
    if as_json:
        print_json(summary)
        return
    out.print(f"Wrote {summary['kept']:,} negatives for {summary['pairs']:,} pairs to {to}")
    if without := summary["queries_without"]:
        result = "left out" if format == "sentence-transformers" else "written without"
        out.print(f"  pairs that got no negative: {without:,}, {result}")
    if "language" in summary:
        out.print(f"  language of the texts: {summary['language']}")
    for reason, count in summary["rejected"].items():
        out.print(f"  rejected: {reason}: {count:,}")
