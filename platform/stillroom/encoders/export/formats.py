"""An encoder for other people's programs: a sentence-transformers folder, ONNX or OpenVINO.

ONNX comes from torch.export of our own forward, and so with prompt mask, pooling, projection and
normalisation in the graph; an exporter by architecture, such as Optimum's, would give the bare
transformer's states.
"""

import contextlib
import json
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
from stillroom.encoders.export.int8 import Sample
from stillroom.encoders.export.runtimes import (
    EXPORT,
    INPUTS,
    ONNX,
    OPENVINO,
    OUTPUT,
    Exported,
    installed,
)
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.files.save import save
from stillroom.encoders.tokens.prompter import Batch, pad
from stillroom.errors import UserError

SAMPLE = 64  # texts that a format is calibrated on

# Any few texts will do to trace a graph.
TRACED = ("short", "A sentence of some words, which is no question.", "many words " * 60)

Write = Callable[[Encoder, Path, Sample], dict[str, Any]]

Reopened = Callable[[list[str], Role], np.ndarray]  # texts → float32, (n, dims)


@dataclass(frozen=True)
class Format:
    """How a format is written, opened again, and how like the encoder it must be.

    Attributes:
        write: of encoder, folder and sample; returns what export.json says of it.
        reopen: the folder's vectors, by whatever opens it elsewhere.
        floor: the least cosine between a text's vector here and there.
    """

    write: Write
    reopen: Callable[[Path], Reopened]
    floor: float


def export(
    encoder: Encoder, format: str, folder: Path, texts: list[tuple[str, Role]]
) -> dict[str, Any]:
    """Writes an encoder into a folder that is not there yet: see `whole`.

    Graphs compute in float32, to which the encoder is brought as well; a sentence-transformers
    folder keeps the weights' own precision.

    Args:
        format: one of FORMATS.
        texts: real ones with their roles. Up to SAMPLE of them, of all lengths, calibrate int8.

    Returns:
        What the folder's export.json says.

    Raises:
        UserError: when the format cannot hold this encoder, or lacks a package.
    """
    if format != "sentence-transformers":
        encoder.contract = encoder.contract.model_copy(update={"precision": "float32"})
        encoder.float()
    sample = Sample.of(encoder, texts, SAMPLE)
    folder.mkdir(parents=True)
    told = FORMATS[format].write(encoder, folder, sample)
    encoder.tokenizer.save_pretrained(folder)
    encoder.contract.write(folder)
    told = {"format": format, "parameters": encoder.parameters_total, **told}
    (folder / EXPORT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A place to make a folder in, which has its name only when all of the block is done."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_sentence_transformers(encoder: Encoder, folder: Path, sample: Sample) -> dict[str, Any]:
    installed("sentence_transformers", "export")
    save(encoder, folder)
    if not (folder / sentence_transformers.MODULES).exists():
        raise UserError(
            "--format sentence-transformers",
            "cannot say that a text ends in EOS, is given twice or is pooled by latent attention",
            "Export it as onnx",
        )
    return {}


def _to_onnx(encoder: Encoder, folder: Path, sample: Sample) -> dict[str, Any]:
    """model.onnx. Its inputs are input_ids, attention_mask and pool_mask, int64 (b, l), as the
    contract says they are made; its output is vectors, float32 (b, dims)."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        installed(package, "export")
    batch = pad(encoder.prompter(TRACED, "query"), encoder.pad_id)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch to its own developers
        torch.onnx.export(
            _Flat(encoder),
            (batch.ids_bl, batch.mask_bl, batch.pool_mask_bl),
            folder / ONNX,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=(axes, axes, axes),
            dynamo=True,
            verbose=False,
        )
    return {}


def _quantised(quantise: Callable[[Path, Path, Sample], dict[str, Any]]) -> Write:
    """By way of a float32 graph, which is not kept."""

    def write(encoder: Encoder, folder: Path, sample: Sample) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            _to_onnx(encoder, Path(aside), sample)
            return quantise(Path(aside) / ONNX, folder / ONNX, sample)

    return write


def _to_openvino(encoder: Encoder, folder: Path, sample: Sample) -> dict[str, Any]:
    openvino = installed("openvino", "openvino")
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        _to_onnx(encoder, Path(aside), sample)
        model = openvino.convert_model(Path(aside) / ONNX)
        openvino.save_model(model, folder / OPENVINO, compress_to_fp16=False)
    return {}


def _to_openvino_int8(encoder: Encoder, folder: Path, sample: Sample) -> dict[str, Any]:
    openvino, nncf = installed("openvino", "openvino"), installed("nncf", "openvino")
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        _to_onnx(encoder, Path(aside), sample)
        return int8.openvino(openvino, nncf, Path(aside) / ONNX, folder / OPENVINO, sample)


class _Flat(torch.nn.Module):
    """An encoder of tensors, for a graph knows no batch of ours."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, pool_mask: torch.Tensor
    ) -> torch.Tensor:
        return self.encoder(Batch(ids, mask, pool_mask))


def _as_exported(folder: Path) -> Reopened:
    return Exported(folder).encode


def _as_sentence_transformers(folder: Path) -> Reopened:
    """By that library itself."""
    model = installed("sentence_transformers", "export").SentenceTransformer(
        str(folder), device="cpu"
    )
    names = {"query": "query", "passage": "document"}

    def encode(texts: list[str], role: Role) -> np.ndarray:
        return np.asarray(
            model.encode(texts, prompt_name=names[role], show_progress_bar=False), np.float32
        )

    return encode


EXACT, ALIKE = 0.9999, 0.99

FORMATS = {
    "sentence-transformers": Format(_to_sentence_transformers, _as_sentence_transformers, EXACT),
    "onnx": Format(_to_onnx, _as_exported, EXACT),
    "onnx-int8": Format(_quantised(int8.dynamic), _as_exported, ALIKE),
    "onnx-int8-static": Format(_quantised(int8.static), _as_exported, ALIKE),
    "openvino": Format(_to_openvino, _as_exported, EXACT),
    "openvino-int8": Format(_to_openvino_int8, _as_exported, ALIKE),
}
