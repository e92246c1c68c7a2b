"""Exports an encoder for other programs: as a sentence-transformers folder, ONNX or OpenVINO.

The graphs come from torch.export of our own forward, so that pooling with its mask, projection and
normalisation are inside. Exporters by architecture, such as Optimum, give only the transformer's
states.
"""

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export import int8
from stillroom.encoders.export.int8 import CalibrationSample
from stillroom.encoders.export.runtimes import (
    EXPORT_FILE,
    INPUTS,
    ONNX_FILE,
    OPENVINO_FILE,
    OUTPUT,
    ExportedEncoder,
    require_package,
)
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.tokens.batch import Batch, pad
from stillroom.errors import UserError

SAMPLE_TEXTS = 64  # that a format is calibrated on

# A graph may be traced on any texts.
TRACED_TEXTS = ("short", "A sentence of some words, which is no question.", "many words " * 60)

WriteFormat = Callable[[Encoder, Path, CalibrationSample], dict[str, Any]]
EncodeTexts = Callable[[list[str], Role], np.ndarray]  # texts → float32, (n, dims)


@dataclass(frozen=True)
class FormatSpec:
    """How a format is written and reopened, and how close its vectors must be.

    Attributes:
        write: (encoder, folder, sample) → the format's fields in export.json.
        reopen: folder → a function that encodes with it, as other programs open it.
        floor: the lowest allowed cosine between a text's vector of the encoder and the export.
    """

    write: WriteFormat
    reopen: Callable[[Path], EncodeTexts]
    floor: float


def export_encoder(
    encoder: Encoder, format: str, folder: Path, texts: list[tuple[str, Role]]
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
    if format != "sentence-transformers":
        encoder.contract = encoder.contract.model_copy(update={"precision": "float32"})
        encoder.float()
    sample = CalibrationSample.draw(encoder, texts, SAMPLE_TEXTS)
    folder.mkdir(parents=True)
    details = FORMATS[format].write(encoder, folder, sample)
    encoder.tokenizer.save_pretrained(folder)
    encoder.contract.write(folder)
    content = {"format": format, "parameters": encoder.parameters_total, **details}
    (folder / EXPORT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed.")


# The exporter warns that it skips torchvision's operators, which no text encoder has.
logging.getLogger("torch.onnx._internal.exporter._registration").addFilter(_not_about_torchvision)


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
    encoder: Encoder, folder: Path, sample: CalibrationSample
) -> dict[str, Any]:
    require_package("sentence_transformers", "export")
    save_encoder(encoder, folder)
    if not (folder / sentence_transformers.MODULES_FILE).exists():
        raise UserError(
            "--format sentence-transformers",
            "cannot express echo or latent pooling",
            "Export it as onnx",
        )
    return {}


def _to_onnx(encoder: Encoder, folder: Path, sample: CalibrationSample) -> dict[str, Any]:
    """Writes model.onnx: input_ids, attention_mask and pool_mask, int64 (b, l) → vectors, float32
    (b, dims)."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, "export")
    batch = pad(encoder.prompter(TRACED_TEXTS, "query"), encoder.pad_id)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for torch's developers
        torch.onnx.export(
            _TensorEncoder(encoder),
            (batch.ids_bl, batch.mask_bl, batch.pool_mask_bl),
            folder / ONNX_FILE,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=(axes, axes, axes),
            dynamo=True,
            verbose=False,
        )
    return {}


def _to_quantised_onnx(
    quantise: Callable[[Path, Path, CalibrationSample], dict[str, Any]],
) -> WriteFormat:
    """Quantises a temporary float32 graph."""

    def write(encoder: Encoder, folder: Path, sample: CalibrationSample) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _to_onnx(encoder, Path(temporary), sample)
            return quantise(Path(temporary) / ONNX_FILE, folder / ONNX_FILE, sample)

    return write


def _to_openvino(encoder: Encoder, folder: Path, sample: CalibrationSample) -> dict[str, Any]:
    openvino = require_package("openvino", "openvino")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _to_onnx(encoder, Path(temporary), sample)
        model = openvino.convert_model(Path(temporary) / ONNX_FILE)
        openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)
    return {}


def _to_openvino_int8(encoder: Encoder, folder: Path, sample: CalibrationSample) -> dict[str, Any]:
    openvino, nncf = require_package("openvino", "openvino"), require_package("nncf", "openvino")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        _to_onnx(encoder, Path(temporary), sample)
        return int8.quantise_openvino(
            openvino, nncf, Path(temporary) / ONNX_FILE, folder / OPENVINO_FILE, sample
        )


class _TensorEncoder(torch.nn.Module):
    """An encoder that takes tensors, since a graph has no Batch."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, pool_mask: torch.Tensor
    ) -> torch.Tensor:
        return self.encoder(Batch(ids, mask, pool_mask))


def _open_export(folder: Path) -> EncodeTexts:
    return ExportedEncoder(folder).encode


def _open_sentence_transformers(folder: Path) -> EncodeTexts:
    """Encodes with the library itself."""
    model = require_package("sentence_transformers", "export").SentenceTransformer(
        str(folder), device="cpu"
    )
    prompt_names = {"query": "query", "passage": "document"}

    def encode(texts: list[str], role: Role) -> np.ndarray:
        return np.asarray(
            model.encode(texts, prompt_name=prompt_names[role], show_progress_bar=False), np.float32
        )

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
