"""An encoder as an ONNX graph, with the inputs and outputs that other programs expect.

The graph comes from torch.export of our own forward, so that pooling, projection and normalisation
are inside. Exporters by architecture, such as Optimum, give only the transformer's states.

Shapes: b texts, l tokens, d dims of a state.
"""

import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.runtimes import STATES, VECTORS, graph_inputs, require_package
from stillroom.encoders.tokens.batch import Batch, pad

# A graph may be traced on any texts.
TRACED_TEXTS = ("short", "A sentence of some words, which is no question.", "many words " * 60)

MAX_FILE_BYTES = 2_000_000_000  # of weights: protobuf's limit is 2 GiB, the graph itself included


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed.")


# The exporter warns that it skips torchvision's operators, which no text encoder has.
logging.getLogger("torch.onnx._internal.exporter._registration").addFilter(_not_about_torchvision)


def input_names(encoder: Encoder) -> tuple[str, ...]:
    """The inputs of the encoder's graph, as other programs name them.

    `token_type_ids` where tokenizer and transformer have them. `pool_mask`, which no other program
    gives, only where the contract leaves tokens out of pooling.
    """
    contract = encoder.contract
    names = ["input_ids", "attention_mask"]
    parameters = inspect.signature(encoder.backbone.forward).parameters
    if "token_type_ids" in parameters and "token_type_ids" in encoder.tokenizer.model_input_names:
        names.append("token_type_ids")
    if contract.echo or not (contract.pool_prompt or contract.pooling == "cls"):
        names.append("pool_mask")
    return tuple(names)


def write_onnx(encoder: Encoder, file: Path) -> None:
    """Writes the graph: int64 (b, l) of each of `input_names` → `last_hidden_state`, float32
    (b, l, d), the states that are pooled, and `sentence_embedding`, float32 (b, dims).

    Raises:
        UserError: when a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, "export")
    names = input_names(encoder)
    batch = pad(encoder.prompter(TRACED_TEXTS, "query"), encoder.pad_id)
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for torch's developers
        program = torch.onnx.export(
            _TensorEncoder(encoder, names),
            tuple(torch.from_numpy(array) for array in graph_inputs(batch, names).values()),
            input_names=list(names),
            output_names=[STATES, VECTORS],
            dynamic_shapes=((axes,) * len(names),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    save_graph(program.model, file)


def save_graph(model: Any, file: Path) -> None:
    """Writes a graph of `onnx_ir`; if one file cannot hold its weights, they go into NAME_data
    beside it, which is Optimum's name for them."""
    import onnx_ir

    size = sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    if size > MAX_FILE_BYTES:
        onnx_ir.save(model, file, external_data=f"{file.name}_data")
    else:
        onnx_ir.save(onnx_ir.external_data.load_to_model(model), file)


def copy_graph(file: Path, to: Path) -> None:
    """Copies a graph, its weights arranged as by `save_graph`."""
    import onnx_ir

    save_graph(onnx_ir.load(file), to)


class _TensorEncoder(torch.nn.Module):
    """An encoder that takes tensors, since a graph has no Batch.

    Args:
        names: of the tensors.
    """

    def __init__(self, encoder: Encoder, names: tuple[str, ...]):
        super().__init__()
        self.encoder = encoder
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = dict(zip(self.names, tensors, strict=True))
        mask_bl = inputs.pop("attention_mask")
        batch = Batch(inputs.pop("input_ids"), mask_bl, inputs.pop("pool_mask", mask_bl))
        states_bld = self.encoder.token_states(batch, **inputs)
        return states_bld.float(), self.encoder.vectors(states_bld, batch)
