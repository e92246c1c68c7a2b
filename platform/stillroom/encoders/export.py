"""An encoder for other people's programs: a sentence-transformers folder, or ONNX."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stillroom.encoders import sentence_transformers
from stillroom.encoders.encode import Encoder
from stillroom.encoders.prompt import Batch, pad
from stillroom.encoders.store import save
from stillroom.errors import UserError

ONNX = "model.onnx"
ALIKE = 0.9999  # the least cosine between a text's vector here and there
TEXTS = (
    "short",
    "A sentence of some words, which is no question.",
    "many words " * 60,
    "naïve 漢字",
)


def to_sentence_transformers(encoder: Encoder, out: Path) -> None:
    """A folder that sentence-transformers opens, prompts and normalisation included.

    Raises:
        UserError: when that format cannot say what this encoder does.
    """
    save(encoder, out)
    if not (out / sentence_transformers.MODULES).exists():
        raise UserError(
            "--format sentence-transformers",
            "cannot say that a text ends in EOS, is given twice or is pooled by latent attention",
            "Export it as onnx",
        )


def to_onnx(encoder: Encoder, out: Path) -> None:
    """model.onnx, with the tokenizer and contract.json beside it.

    Its inputs are input_ids, attention_mask and pool_mask, int64 (b, l), as the contract says they
    are made; its output is vectors, float32 (b, dims). It computes in float32, to which the encoder
    is brought as well, and is run on a few texts before it counts.

    Raises:
        UserError: when the packages are missing, or its vectors are not the encoder's.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                "--format onnx", f"{package} is not installed", "pip install 'stillroom[export]'"
            )
    out.mkdir(parents=True, exist_ok=True)
    encoder.contract = encoder.contract.model_copy(update={"precision": "float32"})
    encoder.float().eval()
    batch = _batch(encoder)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch to its own developers
        torch.onnx.export(
            _Flat(encoder),
            (batch.ids_bl, batch.mask_bl, batch.pool_mask_bl),
            out / ONNX,
            input_names=["input_ids", "attention_mask", "pool_mask"],
            output_names=["vectors"],
            dynamic_shapes=(axes, axes, axes),
            dynamo=True,
            verbose=False,
        )
    encoder.tokenizer.save_pretrained(out)
    encoder.contract.write(out)
    with torch.inference_mode():
        expected = encoder(batch).numpy()
    worst = float((run_onnx(out, batch) * expected).sum(1).min())
    if worst < ALIKE:
        raise UserError(
            str(out / ONNX),
            f"makes other vectors than the encoder: a cosine of {worst:.5f}",
            "Tell us of this model; until then serve it with stillroom",
        )


def run_onnx(folder: Path, batch: Batch) -> np.ndarray:
    """What an exported model makes of a batch: float32, (b, dims)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    [vectors] = session.run(
        ["vectors"],
        {
            "input_ids": batch.ids_bl.numpy(),
            "attention_mask": batch.mask_bl.numpy(),
            "pool_mask": batch.pool_mask_bl.numpy(),
        },
    )
    return np.asarray(vectors)


class _Flat(torch.nn.Module):
    """An encoder of tensors, for a graph knows no batch of ours."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, pool_mask: torch.Tensor
    ) -> torch.Tensor:
        return self.encoder(Batch(ids, mask, pool_mask))


def _batch(encoder: Encoder) -> Batch:
    return pad(encoder.prompter(TEXTS, "query"), encoder.pad_id)


FORMATS: dict[str, Callable[[Encoder, Path], None]] = {
    "sentence-transformers": to_sentence_transformers,
    "onnx": to_onnx,
}
