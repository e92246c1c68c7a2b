"""`stillroom evaluate`, `encode` and `serve`: commands that take a model or a release."""

import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli.app import (
    ApiKeyEnv,
    ModelName,
    PromptName,
    Root,
    TrustRemoteCode,
    check_pooling,
    load_model,
    print_json,
    print_report,
)
from stillroom.errors import UserError, json_line
from stillroom.storage.root import ROOT_FOLDER


def evaluate(
    model: ModelName,
    data: Annotated[
        Path, typer.Option(help="A folder in BEIR layout, or a folder of such folders.")
    ],
    passages_by: Annotated[
        str | None,
        typer.Option(help="A model in the same space that encodes the passages: the teacher."),
    ] = None,
    dims: Annotated[str, typer.Option(help="More vector sizes to measure, such as 128,64.")] = "",
    prompt_name: PromptName = None,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with plots.")] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="OUT", help="Write the scores as JSON to this file; - prints them."
        ),
    ] = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = ROOT_FOLDER,
) -> None:
    """Measure a model's retrieval on evaluation sets.

    Reports scores at every size and precision in which vectors can be stored. --prompt-name names
    the prompt of the queries.

    Example: stillroom evaluate student/quickstart --data my-sets --html scores.html
    """
    if not all(size.strip().isdecimal() for size in dims.split(",") if dims):
        raise UserError("--dims", f"{dims!r} is not a list of sizes", "Write it as 128,64")
    more_sizes = [int(size) for size in dims.split(",") if dims]
    from stillroom.data.readers.beir import read_beir_sets

    sets = read_beir_sets(data)
    from stillroom.evaluation.evaluate import (
        encode_asymmetric,
        encode_sets,
        report_entry,
        shared_dims,
    )
    from stillroom.evaluation.small_vectors import evaluate_precisions, sizes_to_evaluate

    load = functools.partial(
        load_model, root=root, trust_remote_code=trust_remote_code, api_key_env=api_key_env
    )
    encoder = load(model)
    query_prompt = named_prompt(encoder, prompt_name)
    # Sizes are checked before encoding, which takes minutes.
    if passages_by is None:
        name, role = model, "teacher" if model.startswith("teacher/") else "student"
        sizes = sizes_to_evaluate(encoder.contract.dims, more_sizes)
        encoded = encode_sets(encoder, role, sets, query_prompt=query_prompt)
    else:
        name, role = f"queries by {model}, passages by {passages_by}", "asymmetric"
        teacher = load(passages_by)
        sizes = sizes_to_evaluate(shared_dims(encoder.contract, teacher.contract), more_sizes)
        encoded = encode_asymmetric(encoder, teacher, sets, query_prompt=query_prompt)
    measured = report_entry(role, encoder.parameters_total, encoded, sets)
    report = {
        "sets": {set_name: judged.counts() for set_name, judged in sets.items()},
        "models": {name: {**measured, "vectors": evaluate_precisions(encoded, sets, sizes)}},
    }
    if html is not None:
        from stillroom.reports.render import render_evaluation

        html.write_text(render_evaluation(report, name), encoding="utf-8")
    if json_out is None:
        print_report(report)
    elif str(json_out) == "-":
        print_json(report)
    else:
        json_out.write_text(json.dumps(report, indent=2) + "\n")


def named_prompt(encoder: Any, name: str | None) -> str | None:
    """The text of a model's prompt; None for no name."""
    from stillroom.encoders.prompt_names import prompt_by_name

    return None if name is None else prompt_by_name(encoder.contract, name, "--prompt-name")


def encode(
    model: ModelName,
    query: Annotated[
        bool, typer.Option("--query/--passage", help="Which of the model's prompts to use.")
    ] = False,
    prompt_name: PromptName = None,
    dims: Annotated[
        int | None, typer.Option(help="Vector size: one of the model's Matryoshka sizes.")
    ] = None,
    api_key_env: ApiKeyEnv = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = ROOT_FOLDER,
) -> None:
    """Turn lines of standard input into vectors.

    Writes one JSON object per line.

    Example: echo 'how do I sort a list?' | stillroom encode student/quickstart --query
    """
    encoder = load_model(model, root, trust_remote_code=trust_remote_code, api_key_env=api_key_env)
    prompt = named_prompt(encoder, prompt_name)
    texts = [line.rstrip("\n") for line in sys.stdin]
    vectors = encoder.encode(texts, "query" if query else "passage", dims=dims, prompt=prompt)
    for text, vector in zip(texts, vectors, strict=True):
        print(json_line({"text": text, "vector": vector.tolist()}))


def serve(
    served: Annotated[
        str,
        typer.Argument(
            metavar="RELEASE|MODEL",
            help="release/NAME or a release's folder; or any model that `evaluate` takes: a "
            "folder, an artifact, an export, a hub id, package:MODULE/PATH. NAME=… gives it "
            "another name in requests.",
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="Of a plain model, which does not say how it pools: mean, cls, last, "
            "weighted_mean, max or mean_sqrt_len."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    keys_file: Annotated[
        Path | None,
        typer.Option(help="A file of API keys, used together with STILLROOM_API_KEYS."),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let other machines call without an API key.")
    ] = False,
    root: Root = ROOT_FOLDER,
) -> None:
    """Serve a release, or a model as it is, on this machine until stopped.

    Ray Serve answers the OpenAI and text-embeddings-inference APIs; / is a playground.

    Example: stillroom serve release/quickstart --port 8000

    Example: stillroom serve minilm=sentence-transformers/all-MiniLM-L6-v2
    """
    check_pooling(pooling, "--pooling")
    from stillroom.serving.local_server import serve_until_stopped

    serve_until_stopped(
        served,
        host=host,
        pooling=pooling,
        port=port,
        root=root,
        keys_file=None if keys_file is None else str(keys_file.resolve()),
        no_auth=no_auth,
        trust_remote_code=trust_remote_code,
    )
