"""Exported encoders, run by ONNX Runtime or OpenVINO under the same contract."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.encoders.contract import Contract
from stillroom.encoders.encoder import CPU_TOKENS, in_batches
from stillroom.encoders.interface import ByTokens
from stillroom.encoders.layers.backbone import load_tokenizer
from stillroom.encoders.tokens.prompter import Batch, Prompter, Tokens
from stillroom.errors import UserError

ONNX = "model.onnx"

OPENVINO = "openvino_model.xml"

EXPORT = "export.json"  # what the folder says of how it was made and checked

INPUTS = ("input_ids", "attention_mask", "pool_mask")

OUTPUT = "vectors"

Forward = Callable[[Batch], np.ndarray]


class Exported(ByTokens):
    """The encoder in an exported folder; it encodes as `Encoder` does.

    One session serves every batch, and is not to be called by several threads at once.

    Args:
        threads: of one forward; None leaves it to the runtime, which takes all cores.

    Raises:
        UserError: when the folder is not whole, or its runtime is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None):
        self.contract = Contract.read(folder)
        try:
            self.parameters_total = int(json.loads((folder / EXPORT).read_text())["parameters"])
        except (OSError, ValueError, KeyError) as fault:
            raise UserError(
                str(folder / EXPORT), "is not what an export writes", "Export the model again"
            ) from fault
        self.tokenizer = load_tokenizer(folder)
        self.prompter = Prompter(self.tokenizer, self.contract)
        self.pad_id = int(self.tokenizer.pad_token_id)
        file = next(file for file in RUNTIMES if (folder / file).is_file())
        self.forward = RUNTIMES[file](folder / file, threads)

    def encode_tokens(
        self, tokens: Sequence[Tokens], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `Encoder.encode_tokens`."""
        return in_batches(
            self.forward,
            tokens,
            self.contract,
            self.pad_id,
            batch_tokens=batch_tokens or CPU_TOKENS,
            dims=dims,
        )


def is_exported(folder: Path) -> bool:
    """Whether `Exported` opens a folder; the others are `store.load`'s."""
    return any((folder / file).is_file() for file in RUNTIMES)


def onnx_forward(file: Path, threads: int | None = None) -> Forward:
    """A model's forward by ONNX Runtime, on the CPU."""
    runtime = installed("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # its warnings are of its own fusions
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(batch: Batch) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], feed(batch))[0])

    return forward


def openvino_forward(file: Path, threads: int | None = None) -> Forward:
    """A model's forward by OpenVINO, on the CPU."""
    openvino = installed("openvino", "openvino")
    # Left alone it computes in bfloat16 where the machine can, and the vectors are others.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = openvino.Core().compile_model(file, "CPU", settings)

    def forward(batch: Batch) -> np.ndarray:
        return np.array(model(feed(batch))[OUTPUT])  # a copy: the next call overwrites it

    return forward


RUNTIMES: dict[str, Callable[[Path, int | None], Forward]] = {
    ONNX: onnx_forward,
    OPENVINO: openvino_forward,
}


def feed(batch: Batch) -> dict[str, np.ndarray]:
    """A graph's inputs, int64, (b, l)."""
    arrays = (batch.ids_bl, batch.mask_bl, batch.pool_mask_bl)
    return {name: array.numpy() for name, array in zip(INPUTS, arrays, strict=True)}


def installed(package: str, extra: str) -> Any:
    """A package that not everybody needs.

    Raises:
        UserError: when it is missing; `extra` brings it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as fault:
        raise UserError(
            package,
            f"is needed and cannot be imported ({fault})",
            f"pip install 'stillroom[{extra}]'",
        ) from fault
