"""Quantises exported graphs to eight bits, with vectors as close to the originals as required.

Three things keep int8 accurate, in order of their effect: a scale per channel of a weight; matrix
products that are accumulated in float and not rounded to eight bits again; and leaving the few
nodes with the largest error in float.
"""

import bisect
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.encoders.contract import Contract, Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.graph import input_names
from stillroom.encoders.export.runtimes import graph_inputs, open_onnx, open_openvino
from stillroom.encoders.micro_batches import CPU_BATCH_TOKENS, Forward, encode_in_batches
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.encoders.usable_vectors import UnusableVectorError

MIN_COSINE = 0.993  # on the sample; other texts score lower than the sample
MAX_FLOAT_SHARE = 0.5  # of the products; with more of them in float it would not be int8
RANKING_STRIDE = 8  # nodes are ranked by error on every 8th text of the sample

# Kinds of nodes that are quantised → which input is the weight. Gather looks up embeddings.
WEIGHT_INPUT = {"MatMul": 1, "Gather": 0}

# Weights have seven bits: on CPUs without VNNI, sums of products of eight bits overflow, which a
# check on a CPU with VNNI would not show.
WEIGHT_OPTIONS = {"per_channel": True, "reduce_range": True}


@dataclass(frozen=True)
class CalibrationSample:
    """Real texts as tokens, and the vectors that the encoder makes of them, (n, dims).

    Attributes:
        inputs: names of the graph's inputs.
    """

    tokens: list[Tokens]
    vectors: np.ndarray
    contract: Contract
    pad_id: int
    inputs: tuple[str, ...]

    @staticmethod
    def draw(
        encoder: Encoder, texts: Sequence[tuple[str, Role]], count: int
    ) -> "CalibrationSample":
        """Up to `count` of the texts, of evenly spaced lengths, with the shortest and longest."""
        ordered = sorted(set(texts), key=lambda text: (len(text[0]), text))
        rows = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
        tokens = [encoder.prompter([text], role)[0] for text, role in (ordered[i] for i in rows)]
        vectors = encoder.encode_tokens(tokens)
        return CalibrationSample(
            tokens, vectors, encoder.contract, encoder.pad_id, input_names(encoder)
        )

    def every(self, step: int) -> "CalibrationSample":
        """Every step-th text."""
        return replace(self, tokens=self.tokens[::step], vectors=self.vectors[::step])

    def cosines(self, forward: Forward) -> np.ndarray:
        """Cosines between the encoder's vectors and another forward's (see `row_agreement`), (n,);
        zeros if that gives an unusable one."""
        try:
            vectors = encode_in_batches(
                forward, self.tokens, self.contract, self.pad_id, max_tokens=CPU_BATCH_TOKENS
            )
        except UnusableVectorError:
            return np.zeros(len(self.tokens))
        return row_agreement(self.vectors, vectors)

    def single_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """A graph's inputs, one text at a time: padding would distort activation ranges."""
        for text in self.tokens:
            yield graph_inputs(pad([text], self.pad_id), self.inputs)


def row_agreement(a_nd: np.ndarray, b_nd: np.ndarray) -> np.ndarray:
    """How close each row of one matrix is to that row of the other, 1 if equal: float64 (n,).

    2 a·b / (|a|² + |b|²): the cosine of vectors of one length, and less where lengths differ, on
    which the scores of a model that dot compares depend.
    """
    a_nd, b_nd = a_nd.astype(np.float64), b_nd.astype(np.float64)
    squares = np.square(a_nd).sum(1) + np.square(b_nd).sum(1)
    return 2 * (a_nd * b_nd).sum(1) / np.maximum(squares, 1e-24)


def quantise_dynamic(model: Path, out: Path, sample: CalibrationSample) -> dict[str, Any]:
    """Measures the range of activations in each batch; see `_quantise_until_close`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantise(nodes: list[str], to: Path) -> None:
        quantize_dynamic(
            model,
            to,
            op_types_to_quantize=list(WEIGHT_INPUT),
            nodes_to_quantize=nodes,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,  # any size
            **WEIGHT_OPTIONS,
        )

    return _quantise_until_close(model, out, sample, quantise)


def quantise_static(model: Path, out: Path, sample: CalibrationSample) -> dict[str, Any]:
    """Measures the range of activations once, on the sample; a text's vector does not depend
    on its batch; see `_quantise_until_close`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = sample.single_inputs()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    def quantise(nodes: list[str], to: Path) -> None:
        quantize_static(
            model,
            to,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHT_INPUT),
            nodes_to_quantize=nodes,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,  # any size
            extra_options={"OpTypesToExcludeOutputQuantization": list(WEIGHT_INPUT)},
            **WEIGHT_OPTIONS,
        )

    return _quantise_until_close(model, out, sample, quantise)


def quantise_openvino(
    openvino: Any, nncf: Any, model: Path, out: Path, sample: CalibrationSample
) -> dict[str, Any]:
    """As `quantise_static`, by NNCF, which moves the outliers of activations into the weights
    (SmoothQuant, arXiv 2211.10438).

    Args:
        openvino, nncf: the packages.
    """
    inputs = list(sample.single_inputs())
    nodes = _quantisable_nodes(model)
    nncf.set_log_level(logging.WARNING)

    def quantise(chosen: list[str], to: Path) -> None:
        quantised = nncf.quantize(
            openvino.convert_model(model),
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[node for node in nodes if node not in chosen]),
        )
        openvino.save_model(quantised, to, compress_to_fp16=False)

    return _quantise_until_close(model, out, sample, quantise, open_openvino)


def _quantise_until_close(
    model: Path,
    out: Path,
    sample: CalibrationSample,
    quantise: Callable[[list[str], Path], None],
    open_model: Callable[[Path], Forward] = open_onnx,
) -> dict[str, Any]:
    """Quantises all nodes but the fewest that must stay float for all cosines to reach MIN_COSINE.

    Args:
        quantise: writes the model with the named nodes quantised.
        open_model: opens the written model.

    Returns:
        `quantised`: how many nodes are; `float`: the names of the others; `sample`: how many texts
        the cosines were measured on.
    """
    nodes = _quantisable_nodes(model)
    worst_first: list[str] = []

    def is_close(float_count: int) -> bool:
        """Whether the model is close enough with this many of the worst nodes in float."""
        quantise([node for node in nodes if node not in worst_first[:float_count]], out)
        return bool(sample.cosines(open_model(out)).min() >= MIN_COSINE)

    float_count = 0
    if not is_close(0):
        errors = _quantisation_errors(model, nodes, sample)
        worst_first = sorted(nodes, key=lambda node: -errors[node])
        limit = round(MAX_FLOAT_SHARE * len(nodes))
        float_count = bisect.bisect_left(range(limit), True, lo=1, key=is_close)
        is_close(float_count)  # writes the chosen model last
    return {
        "quantised": len(nodes) - float_count,
        "float": worst_first[:float_count],
        "sample": len(sample.tokens),
    }


def _quantisation_errors(
    model: Path, names: Sequence[str], sample: CalibrationSample
) -> dict[str, float]:
    """Node → the relative squared error of its product in eight bits, with all else in float; a
    mean over some of the sample.

    Embeddings, most of a small model's weight, count as exact, and so come last. Quantising nodes
    one by one and comparing vectors ranks a little better, and takes minutes.
    """
    import onnx
    from onnxruntime import InferenceSession

    proto = onnx.load(model)
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = {}
    for node in graph.node:
        if node.name in names and node.op_type == "MatMul":
            weight = onnx.numpy_helper.to_array(weights[node.input[1]])
            products[node.name] = (node.input[0], weight, _rounded(weight, 7, axis=0))
    activation_names = sorted({activation for activation, _, _ in products.values()})
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in activation_names
    )
    errors: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "with_activations.onnx"
        onnx.save(proto, path, save_as_external_data=True)  # one file holds at most 2 GiB
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
        for inputs in sample.every(RANKING_STRIDE).single_inputs():
            values = session.run(activation_names, inputs)
            activations = dict(zip(activation_names, values, strict=True))
            for name, (activation, weight, rounded_weight) in products.items():
                exact = activations[activation]
                quantised = _rounded(exact, 8, axis=None) @ rounded_weight
                errors[name].append(_relative_error(exact @ weight, quantised))
    return {name: float(np.mean(each or 0.0)) for name, each in errors.items()}


def _rounded(values: np.ndarray, bits: int, axis: int | None) -> np.ndarray:
    """Values rounded to a grid of this many bits between their extremes, per axis or overall."""
    low = np.minimum(values.min(axis, keepdims=True), 0)
    step = (np.maximum(values.max(axis, keepdims=True), 0) - low) / (2**bits - 1)
    step = np.maximum(step, np.finfo(np.float32).tiny)
    return np.asarray(np.round(values / step) * step)


def _relative_error(exact: np.ndarray, quantised: np.ndarray) -> float:
    return float(np.square(quantised - exact).sum() / max(np.square(exact).sum(), 1e-30))


def _quantisable_nodes(model: Path) -> list[str]:
    """Names of the nodes with a constant matrix, which makes up the size of the file."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    matrices = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    return [
        node.name
        for node in graph.node
        if node.op_type in WEIGHT_INPUT and node.input[WEIGHT_INPUT[node.op_type]] in matrices
    ]
