"""`stillroom export`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from stillroom.cli.app import (
    AsJson,
    ModelName,
    Root,
    TrustRemoteCode,
    load_model,
    out,
    print_json,
    stdout_to_stderr,
)
from stillroom.errors import UserError
from stillroom.storage.root import ROOT_FOLDER

if TYPE_CHECKING:
    from stillroom.data.readers.records import EvaluationSet


FORMATS = "sentence-transformers, onnx, onnx-int8, onnx-int8-static, openvino or openvino-int8."

# Without --data and --texts: docstrings of packages that stillroom depends on.
DOCSTRING_PACKAGES = ("numpy", "pydantic", "typer")

DOCSTRING_PAIRS = 200


def export(
    model: ModelName,
    format: Annotated[str, typer.Option(help=FORMATS)],
    folder: Annotated[Path, typer.Option("--out", help="A folder that does not exist yet.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder in BEIR layout, or a folder of such folders. Its texts calibrate int8; "
            "vectors and nDCG@10 are compared on all of it."
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Instead of --data, a file with one text per line.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Export a model to a format that other programs read.

    The export is compared with the original. It fails, and leaves nothing behind, when the cosine
    of any text's two vectors is below 0.9999 (float32) or 0.99 (int8). Without --data or --texts,
    docstrings of some installed packages are compared.

    Example: stillroom export student/quickstart --format onnx-int8 --data my-sets --out exported
    """
    from stillroom.config.recipe import ExportFormat

    formats = get_args(ExportFormat)
    if format not in formats:
        raise UserError("--format", f"{format!r} is unknown", f"Use one of {', '.join(formats)}")
    if folder.exists():
        raise UserError(f"--out {folder}", "exists already", "Name a new folder")
    sets, origin = _comparison_texts(data, texts)
    from stillroom.encoders.export.formats import atomic_folder
    from stillroom.encoders.files.load import require_weights
    from stillroom.evaluation.checked_export import export_and_check
    from stillroom.reports.model_card import artifact_of, write_model_card
    from stillroom.storage.artifacts import Store

    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        loaded = load_model(model, root, trust_remote_code=trust_remote_code)
        encoder = require_weights(loaded, model)
        with atomic_folder(folder) as partial:
            summary = export_and_check(encoder, format, partial, sets, origin)
            store = Store(root)
            write_model_card(partial, folder.name, artifact_of(model, store), store)
    if as_json:
        print_json({"model": model, "path": str(folder), **summary})
        return
    check = summary["check"]
    cosine = check["cosine"]
    out.print(f"Wrote {model} to {folder}")
    out.print(
        f"  {check['texts']:,} texts ({origin}): cosine to the original {cosine['mean']:.5f} on "
        f"average, {cosine['min']:.5f} at worst"
    )
    for name, figures in check["ndcg@10"].items():
        out.print(
            f"  nDCG@10 on {name}: {figures['original']:.4f} → {figures['exported']:.4f} "
            f"({figures['change']:+.4f})"
        )


def _comparison_texts(
    data: Path | None, texts: Path | None
) -> "tuple[dict[str, EvaluationSet], str]":
    """The texts that both models encode, as evaluation sets, and a description of their origin.

    Raises:
        UserError: when there is nothing to read.
    """
    from stillroom.data.readers.beir import read_beir_sets
    from stillroom.data.readers.records import EvaluationSet

    if data is not None and texts is not None:
        raise UserError("--texts", "cannot be used together with --data", "Use one of them")
    if data is not None:
        return read_beir_sets(data), str(data)
    if texts is not None:
        try:
            lines = texts.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--texts {texts}", f"cannot be read: {error}", "Name a text file"
            ) from error
        by_id = {str(number): line for number, line in enumerate(lines) if line.strip()}
        if not by_id:
            raise UserError(f"--texts {texts}", "holds no text", "Write one text per line")
        # Both as queries and as passages: their prompts can differ.
        return {texts.stem: EvaluationSet(by_id, by_id, {})}, str(texts)
    packages = ", ".join(DOCSTRING_PACKAGES)
    return {"docstrings": docstring_texts()}, f"docstrings of {packages}, not your data"


def docstring_texts() -> "EvaluationSet":
    """Texts that every installation has: summaries of docstrings, and the docstrings."""
    from stillroom.data.readers.docstrings import docstring_pairs
    from stillroom.data.readers.records import EvaluationSet

    pairs = list(docstring_pairs(DOCSTRING_PACKAGES))
    pairs = pairs[:: max(1, len(pairs) // DOCSTRING_PAIRS)]
    by_number = {str(number): pair for number, pair in enumerate(pairs)}
    return EvaluationSet(
        {number: pair.passage for number, pair in by_number.items()},
        {number: pair.query for number, pair in by_number.items()},
        {},
    )
