"""Runs exported encoders with ONNX Runtime or OpenVINO, under the same contract.

Shapes: b texts, l tokens.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.encoders.contract import Contract
from stillroom.encoders.files.pretrained import load_tokenizer
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.micro_batches import CPU_BATCH_TOKENS, Forward, encode_in_batches
from stillroom.encoders.tokens.batch import Batch, Tokens, pad
from stillroom.encoders.tokens.prompter import Prompter
from stillroom.errors import UserError

# Where Optimum, sentence-transformers, fastembed and transformers.js look for a graph.
ONNX_FILE = "onnx/model.onnx"
ONNX_INT8_FILE = "onnx/model_quantized.onnx"
OPENVINO_FILE = "openvino/openvino_model.xml"
OPENVINO_INT8_FILE = "openvino/openvino_model_qint8_quantized.xml"

EXPORT_FILE = "export.json"  # how the export was made and checked
STATES, VECTORS = "last_hidden_state", "sentence_embedding"  # a graph's outputs


class ExportedEncoder(TokenEncoder):
    """The encoder in an exported folder; it encodes as `Encoder` does.

    All batches share one session, which is not thread-safe.

    Args:
        threads: of one forward; None: the runtime uses all cores.

    Raises:
        UserError: when the folder is incomplete, or its runtime is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None):
        self.contract = Contract.read(folder)
        try:
            self.parameters_total = int(
                json.loads((folder / EXPORT_FILE).read_text())["parameters"]
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                str(folder / EXPORT_FILE), "is not what an export writes", "Export the model again"
            ) from error
        self.tokenizer = load_tokenizer(folder)
        self.prompter = Prompter(self.tokenizer, self.contract)
        self.pad_id = int(self.tokenizer.pad_token_id)
        file = _graph(folder)
        if file is None:
            raise UserError(str(folder), "holds no exported graph", "Export the model again")
        self.forward = RUNTIMES[file](folder / file, threads)

    def encode_batch(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """As `Encoder.encode_batch`."""
        return self.forward(pad(tokens, self.pad_id))

    def encode_tokens(
        self, tokens: Sequence[Tokens], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `Encoder.encode_tokens`."""
        return encode_in_batches(
            self.forward,
            tokens,
            self.contract,
            self.pad_id,
            max_tokens=batch_tokens or CPU_BATCH_TOKENS,
            dims=dims,
        )


def is_exported(folder: Path) -> bool:
    """Whether `ExportedEncoder` opens a folder; `load_encoder` opens the others, such as published
    ones with graphs beside their weights."""
    return (folder / EXPORT_FILE).is_file() and _graph(folder) is not None


def _graph(folder: Path) -> str | None:
    return next((file for file in RUNTIMES if (folder / file).is_file()), None)


def open_onnx(file: Path, threads: int | None = None) -> Forward:
    """A model's forward with ONNX Runtime, on the CPU."""
    runtime = require_package("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # warnings are only about its own fusions
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def forward(batch: Batch) -> np.ndarray:
        return np.asarray(session.run([VECTORS], graph_inputs(batch, names))[0])

    return forward


def open_openvino(file: Path, threads: int | None = None) -> Forward:
    """A model's forward with OpenVINO, on the CPU."""
    openvino = require_package("openvino", "openvino")
    # By default it computes in bfloat16 where the machine can, which changes the vectors.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = openvino.Core().compile_model(file, "CPU", settings)
    names = [given.get_any_name() for given in model.inputs]

    def forward(batch: Batch) -> np.ndarray:
        return np.array(model(graph_inputs(batch, names))[VECTORS])  # a copy: a call overwrites it

    return forward


RUNTIMES: dict[str, Callable[[Path, int | None], Forward]] = {
    ONNX_FILE: open_onnx,
    ONNX_INT8_FILE: open_onnx,
    OPENVINO_FILE: open_openvino,
    OPENVINO_INT8_FILE: open_openvino,
}


def graph_inputs(batch: Batch, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs of a graph that has those with these names, each int64 (b, l)."""
    arrays = {
        "input_ids": batch.ids_bl,
        "attention_mask": batch.mask_bl,
        "token_type_ids": torch.zeros_like(batch.ids_bl),
        "pool_mask": batch.pool_mask_bl,
    }
    return {name: arrays[name].numpy() for name in names}


def require_package(package: str, extra: str) -> Any:
    """Imports an optional package, which `pip install stillroom[extra]` installs.

    Raises:
        UserError: when it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            package,
            f"is needed and cannot be imported ({error})",
            f"pip install 'stillroom[{extra}]'",
        ) from error
