"""Exports an encoder for other programs: as a sentence-transformers folder, ONNX or OpenVINO.

A graph stands where Optimum puts it, in onnx/ or openvino/. Beside it are the files that describe
the model to sentence-transformers, and the tokenizer to all programs.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export import int8
from stillroom.encoders.export.graph import copy_graph, input_names, write_onnx
from stillroom.encoders.export.int8 import CalibrationSample
from stillroom.encoders.export.runtimes import (
    EXPORT_FILE,
    ONNX_FILE,
    ONNX_INT8_FILE,
    OPENVINO_FILE,
    OPENVINO_INT8_FILE,
    ExportedEncoder,
    require_package,
)
from stillroom.encoders.export.tokenizer_files import padding_side, write_tokenizer
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.files.save_sentence_transformers import inexpressible, write_modules
from stillroom.encoders.files.save_transformer import save_config
from stillroom.encoders.layers.backbone import hidden_size
from stillroom.errors import UserError

SAMPLE_TEXTS = 64  # that a format is calibrated on

TextsWithRoles = list[tuple[str, Role]]
WriteFormat = Callable[[Encoder, Path, TextsWithRoles], dict[str, Any]]
EncodeTexts = Callable[[list[str], Role], np.ndarray]  # texts → float32, (n, dims)


@dataclass(frozen=True)
class FormatSpec:
    """How a format is written and reopened, and how close its vectors must be.

    Attributes:
        write: (encoder, folder, texts) → the format's fields in export.json.
        reopen: folder → a function that encodes with it, as other programs open it.
        floor: the lowest allowed cosine between a text's vector of the encoder and the export.
    """

    write: WriteFormat
    reopen: Callable[[Path], EncodeTexts]
    floor: float


def export_encoder(
    encoder: Encoder, format: str, folder: Path, texts: TextsWithRoles
) -> dict[str, Any]:
    """Writes an encoder into a new folder; see `atomic_folder`.

    Graphs compute in float32, and the encoder is converted to it as well; a sentence-transformers
    folder keeps the precision of the weights.

    Args:
        format: one of FORMATS.
        texts: real texts with their roles. Up to SAMPLE_TEXTS, of all lengths, calibrate int8.

    Returns:
        The content of the folder's export.json.

    Raises:
        UserError: when the format cannot express this encoder, or a package is missing.
    """
    is_graph = format != "sentence-transformers"
    if is_graph:
        encoder.contract = encoder.contract.model_copy(update={"precision": "float32"})
        encoder.float()
    folder.mkdir(parents=True)
    details = FORMATS[format].write(encoder, folder, texts)
    if is_graph:
        _write_description(encoder, folder)
    encoder.contract.write(folder)
    content = {"format": format, "parameters": encoder.parameters_total, **details}
    (folder / EXPORT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed to its final name when the block ends without an error."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_sentence_transformers(
    encoder: Encoder, folder: Path, texts: TextsWithRoles
) -> dict[str, Any]:
    if reason := inexpressible(encoder.contract, encoder.tokenizer, hidden_size(encoder.backbone)):
        raise UserError(
            "--format sentence-transformers",
            f"the library cannot express {reason}",
            "Export it as onnx",
        )
    save_encoder(encoder, folder)
    write_tokenizer(encoder.tokenizer, folder)
    return {}


def _write_description(encoder: Encoder, folder: Path) -> None:
    """Writes what programs read beside a graph: the transformer's config, the tokenizer, and the
    modules that sentence-transformers runs behind the graph's states."""
    contract, hidden = encoder.contract, hidden_size(encoder.backbone)
    save_config(encoder.backbone, folder)
    write_tokenizer(
        encoder.tokenizer,
        folder,
        max_tokens=contract.max_tokens,
        input_names=input_names(encoder),
        padding_side=padding_side(encoder),
    )
    if inexpressible(contract, encoder.tokenizer, hidden) is None:
        projection = {} if encoder.projection is None else encoder.projection.state_dict()
        write_modules(folder, contract, hidden, projection)


def _to_onnx(encoder: Encoder, folder: Path, texts: TextsWithRoles) -> dict[str, Any]:
    write_onnx(encoder, folder / ONNX_FILE)
    return {}


@contextlib.contextmanager
def _temporary_graph(encoder: Encoder, folder: Path) -> Iterator[Path]:
    """The encoder's float32 graph, from which other formats are made."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        graph = Path(temporary) / "model.onnx"
        write_onnx(encoder, graph)
        yield graph


def _to_quantised_onnx(
    quantise: Callable[[Path, Path, CalibrationSample], dict[str, Any]],
) -> WriteFormat:
    def write(encoder: Encoder, folder: Path, texts: TextsWithRoles) -> dict[str, Any]:
        sample = CalibrationSample.draw(encoder, texts, SAMPLE_TEXTS)
        with _temporary_graph(encoder, folder) as graph:
            quantised = graph.with_name("quantised.onnx")
            details = quantise(graph, quantised, sample)
            copy_graph(quantised, folder / ONNX_INT8_FILE)
        return details

    return write


def _to_openvino(encoder: Encoder, folder: Path, texts: TextsWithRoles) -> dict[str, Any]:
    openvino = require_package("openvino", "openvino")
    with _temporary_graph(encoder, folder) as graph:
        model = openvino.convert_model(graph)
        openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)
    return {}


def _to_openvino_int8(encoder: Encoder, folder: Path, texts: TextsWithRoles) -> dict[str, Any]:
    openvino, nncf = require_package("openvino", "openvino"), require_package("nncf", "openvino")
    sample = CalibrationSample.draw(encoder, texts, SAMPLE_TEXTS)
    with _temporary_graph(encoder, folder) as graph:
        return int8.quantise_openvino(openvino, nncf, graph, folder / OPENVINO_INT8_FILE, sample)


def _open_export(folder: Path) -> EncodeTexts:
    return ExportedEncoder(folder).encode


def _open_sentence_transformers(folder: Path) -> EncodeTexts:
    """Encodes with the library itself, as its users do."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    model = SentenceTransformer(str(folder), device="cpu")

    def encode(texts: list[str], role: Role) -> np.ndarray:
        by_role = model.encode_query if role == "query" else model.encode_document
        return np.asarray(by_role(texts, show_progress_bar=False), np.float32)

    return encode


EXACT_COSINE, QUANTISED_COSINE = 0.9999, 0.99  # floors

FORMATS = {
    "sentence-transformers": FormatSpec(
        _to_sentence_transformers, _open_sentence_transformers, EXACT_COSINE
    ),
    "onnx": FormatSpec(_to_onnx, _open_export, EXACT_COSINE),
    "onnx-int8": FormatSpec(
        _to_quantised_onnx(int8.quantise_dynamic), _open_export, QUANTISED_COSINE
    ),
    "onnx-int8-static": FormatSpec(
        _to_quantised_onnx(int8.quantise_static), _open_export, QUANTISED_COSINE
    ),
    "openvino": FormatSpec(_to_openvino, _open_export, EXACT_COSINE),
    "openvino-int8": FormatSpec(_to_openvino_int8, _open_export, QUANTISED_COSINE),
}
