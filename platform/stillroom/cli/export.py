"""`stillroom export`."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from stillroom.cli.app import (
    AsJson,
    Root,
    TrustRemoteCode,
    app,
    load_model,
    out,
    stdout_to_stderr,
)
from stillroom.errors import UserError

if TYPE_CHECKING:
    from stillroom.data.readers.records import EvaluationSet


FORMATS = "sentence-transformers, onnx, onnx-int8, onnx-int8-static, openvino or openvino-int8."

# What is compared where nothing is given: texts of packages that are always there, summaries and
# what follows them.
DOCUMENTED = ("numpy", "pydantic", "typer")

BUILT_IN = 200  # pairs


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Artifact, folder, hub id or package: name.")],
    format: Annotated[str, typer.Option(help=FORMATS)],
    folder: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder in BEIR layout, or one of such folders: int8 is calibrated on some of "
            "its texts, the vectors of all are compared, and nDCG@10 is measured."
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="In place of --data, a file with a text a line.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Write a model in a format that other programs open, and compare it with the original.

    A text whose vector is another fails the export, and nothing is left of it: a cosine of 0.9999
    is asked for in float32, and 0.99 in int8. Without --data or --texts, docstrings of the
    packages that stillroom is installed with are compared.

    Example: stillroom export student/quickstart --format onnx-int8 --data my-sets --out exported
    """
    from stillroom.config.recipe import ExportFormat

    formats = get_args(ExportFormat)
    if format not in formats:
        raise UserError("--format", f"{format!r} is unknown", f"Use one of {', '.join(formats)}")
    if folder.exists():
        raise UserError(f"--out {folder}", "is there already", "Name a new folder")
    sets, origin = _compared(data, texts)
    from stillroom.encoders.export.formats import whole
    from stillroom.encoders.files.load import weights_of
    from stillroom.evaluation.checked_export import exported
    from stillroom.reports.model_card import artifact_of, write_card
    from stillroom.storage.artifacts import Store

    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        loaded = load_model(model, root, trust_remote_code=trust_remote_code)
        encoder = weights_of(loaded, model)
        with whole(folder) as partial:
            told = exported(encoder, format, partial, sets, origin)
            store = Store(root)
            write_card(partial, folder.name, artifact_of(model, store), store)
    if as_json:
        print(json.dumps({"model": model, "path": str(folder), **told}))
        return
    check = told["check"]
    cosine = check["cosine"]
    out.print(f"{model} is in {folder}")
    out.print(
        f"  {check['texts']:,} texts ({origin}): cosine to the original {cosine['mean']:.5f} on "
        f"average, {cosine['min']:.5f} at least"
    )
    for name, figures in check["ndcg@10"].items():
        out.print(
            f"  nDCG@10 on {name}: {figures['original']:.4f} → {figures['exported']:.4f} "
            f"({figures['change']:+.4f})"
        )


def _compared(data: Path | None, texts: Path | None) -> "tuple[dict[str, EvaluationSet], str]":
    """Sets of real texts, and where they are from.

    Raises:
        UserError: when there is nothing to read.
    """
    from stillroom.data.readers.beir import read_sets
    from stillroom.data.readers.records import EvaluationSet

    if data is not None and texts is not None:
        raise UserError("--texts", "is given beside --data", "Give one of them")
    if data is not None:
        return read_sets(data), str(data)
    if texts is not None:
        try:
            lines = texts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as fault:
            raise UserError(
                f"--texts {texts}", f"cannot be read: {fault}", "Name a text file"
            ) from fault
        by_id = {str(place): line for place, line in enumerate(lines) if line.strip()}
        if not by_id:
            raise UserError(f"--texts {texts}", "holds no text", "Write a text a line")
        # As queries and as passages, since a prompt may come before either.
        return {texts.stem: EvaluationSet(by_id, by_id, {})}, str(texts)
    from stillroom.data.readers.docstrings import docstring_pairs

    pairs = list(docstring_pairs(DOCUMENTED))
    pairs = pairs[:: max(1, len(pairs) // BUILT_IN)]
    numbered = {str(place): pair for place, pair in enumerate(pairs)}
    kept = EvaluationSet(
        {own_id: pair.passage for own_id, pair in numbered.items()},
        {own_id: pair.query for own_id, pair in numbered.items()},
        {},
    )
    return {"docstrings": kept}, f"docstrings of {', '.join(DOCUMENTED)}, none of them yours"
