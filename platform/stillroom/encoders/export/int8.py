"""Eight-bit weights and activations for exported graphs, as like the float ones as is asked.

What makes int8 good here, in this order: a scale for each channel of a weight; products that are
summed into float and not rounded to eight bits again; and leaving the few nodes that hurt most in
float.
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
from stillroom.encoders.encoder import CPU_TOKENS, Encoder, in_batches
from stillroom.encoders.export.runtimes import Forward, feed, onnx_forward, openvino_forward
from stillroom.encoders.tokens.prompter import Tokens, pad

TARGET = 0.993  # of the sample's least cosine: other texts come out lower than those searched on

MOST_FLOAT = 0.5  # of the products; more of them in float, and it is int8 by name only

RANKED_ON = 8  # one text in so many of the sample tells which node hurts most

# Nodes that are quantised, and which of their inputs is the weight; an embedding is gathered.
WEIGHT = {"MatMul": 1, "Gather": 0}

# Weights have seven bits: on CPUs without VNNI sums of products of eight overflow, and no check on
# a CPU that has it would show.
WEIGHTS = {"per_channel": True, "reduce_range": True}


@dataclass(frozen=True)
class Sample:
    """Real texts as ids, and the vectors that the encoder makes of them, (n, dims)."""

    tokens: list[Tokens]
    vectors: np.ndarray
    contract: Contract
    pad_id: int

    @staticmethod
    def of(encoder: Encoder, texts: Sequence[tuple[str, Role]], most: int) -> "Sample":
        """Some of the texts, of all lengths, the shortest and the longest among them."""
        ordered = sorted(set(texts), key=lambda text: (len(text[0]), text))
        places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
        chosen = [ordered[place] for place in places]
        tokens = [encoder.prompter([text], role)[0] for text, role in chosen]
        vectors = encoder.encode_tokens(tokens)
        return Sample(tokens, vectors, encoder.contract, encoder.pad_id)

    def thinned(self, step: int) -> "Sample":
        """One text in so many."""
        return replace(self, tokens=self.tokens[::step], vectors=self.vectors[::step])

    def cosines(self, forward: Forward) -> np.ndarray:
        """Between the encoder's vectors and another forward's, (n,)."""
        found = in_batches(
            forward,
            self.tokens,
            self.contract,
            self.pad_id,
            batch_tokens=CPU_TOKENS,
            dims=None,
        )
        return cosines(self.vectors, found)

    def alone(self) -> Iterator[dict[str, np.ndarray]]:
        """A graph's inputs, a text each: padding would have its say in an activation's range."""
        for one in self.tokens:
            yield feed(pad([one], self.pad_id))


def cosines(a_nd: np.ndarray, b_nd: np.ndarray) -> np.ndarray:
    """Of each row with its counterpart, float64, (n,)."""
    a_nd, b_nd = a_nd.astype(np.float64), b_nd.astype(np.float64)
    lengths = np.linalg.norm(a_nd, axis=1) * np.linalg.norm(b_nd, axis=1)
    return (a_nd * b_nd).sum(1) / np.maximum(lengths, 1e-12)


def dynamic(model: Path, out: Path, sample: Sample) -> dict[str, Any]:
    """Activations are ranged a batch at a time, weights beforehand; see `_alike`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantise(nodes: list[str], to: Path) -> None:
        quantize_dynamic(
            model,
            to,
            op_types_to_quantize=list(WEIGHT),
            nodes_to_quantize=nodes,
            weight_type=QuantType.QInt8,
            **WEIGHTS,
        )

    return _alike(model, out, sample, quantise)


def static(model: Path, out: Path, sample: Sample) -> dict[str, Any]:
    """Activations are ranged beforehand too, on the sample: nothing is measured at run time, and
    a text's vector does not depend on its batch; see `_alike`."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = sample.alone()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    def quantise(nodes: list[str], to: Path) -> None:
        quantize_static(
            model,
            to,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHT),
            nodes_to_quantize=nodes,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(WEIGHT)},
            **WEIGHTS,
        )

    return _alike(model, out, sample, quantise)


def openvino(runtime: Any, nncf: Any, model: Path, out: Path, sample: Sample) -> dict[str, Any]:
    """Activations are ranged beforehand, on the sample, by NNCF, which moves what is hard to
    quantise from them into weights (SmoothQuant, arXiv 2211.10438); see `_alike`.

    Args:
        runtime, nncf: the packages.
    """
    feeds = list(sample.alone())
    nodes = _nodes(model)
    nncf.set_log_level(logging.WARNING)

    def quantise(chosen: list[str], to: Path) -> None:
        quantised = nncf.quantize(
            runtime.convert_model(model),
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[node for node in nodes if node not in chosen]),
        )
        runtime.save_model(quantised, to, compress_to_fp16=False)

    return _alike(model, out, sample, quantise, openvino_forward)


def _alike(
    model: Path,
    out: Path,
    sample: Sample,
    quantise: Callable[[list[str], Path], None],
    opened: Callable[[Path], Forward] = onnx_forward,
) -> dict[str, Any]:
    """Quantises all that can be, but for the fewest of the worst that keep vectors from being
    alike.

    Args:
        quantise: writes the model with the named nodes quantised.
        opened: what it wrote.

    Returns:
        `quantised`, how many nodes are; `float`, the names of those that are not; `sample`, on
        how many texts that was found.
    """
    nodes = _nodes(model)
    ordered: list[str] = []

    def alike(left: int) -> bool:
        """With so many of the worst in float."""
        quantise([node for node in nodes if node not in ordered[:left]], out)
        return bool(sample.cosines(opened(out)).min() >= TARGET)

    left = 0
    if not alike(0):
        harm = _harm(model, nodes, sample)
        ordered = sorted(nodes, key=lambda node: -harm[node])
        most = round(MOST_FLOAT * len(nodes))
        left = bisect.bisect_left(range(most), True, lo=1, key=alike)
        alike(left)  # which is written last
    return {
        "quantised": len(nodes) - left,
        "float": ordered[:left],
        "sample": len(sample.tokens),
    }


def _harm(model: Path, names: Sequence[str], sample: Sample) -> dict[str, float]:
    """How much of what each product gives eight bits take away, all else in float: the error's
    share of the squares, a mean over some of the sample. Embeddings, most of a small model's
    weight, are said to lose nothing, and so come last.

    To quantise the nodes one by one and compare vectors ranks a little better, and takes minutes.
    """
    import onnx
    from onnxruntime import InferenceSession

    whole = onnx.load(model)
    graph = whole.graph
    weights = {one.name: one for one in graph.initializer}
    products = {}
    for node in graph.node:
        if node.name in names and node.op_type == "MatMul":
            weight = onnx.numpy_helper.to_array(weights[node.input[1]])
            products[node.name] = (node.input[0], weight, _rounded(weight, 7, axis=0))
    read = sorted({activation for activation, _, _ in products.values()})
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in read
    )
    shares: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as aside:
        opened = Path(aside) / "opened.onnx"
        onnx.save(whole, opened, save_as_external_data=True)  # one file holds 2 GiB at most
        session = InferenceSession(opened, providers=["CPUExecutionProvider"])
        for one in sample.thinned(RANKED_ON).alone():
            activations = dict(zip(read, session.run(read, one), strict=True))
            for name, (activation, weight, rounded) in products.items():
                exact = activations[activation]
                found = _rounded(exact, 8, axis=None) @ rounded
                shares[name].append(_share(exact @ weight, found))
    return {name: float(np.mean(of or 0.0)) for name, of in shares.items()}


def _rounded(values: np.ndarray, bits: int, axis: int | None) -> np.ndarray:
    """Values on a grid of so many bits between their extremes, along an axis or of all."""
    low = np.minimum(values.min(axis, keepdims=True), 0)
    step = (np.maximum(values.max(axis, keepdims=True), 0) - low) / (2**bits - 1)
    step = np.maximum(step, np.finfo(np.float32).tiny)
    return np.asarray(np.round(values / step) * step)


def _share(exact: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(found - exact).sum() / max(np.square(exact).sum(), 1e-30))


def _nodes(model: Path) -> list[str]:
    """Nodes of a constant matrix: what is stored, and so made small."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    matrices = {
        one.name
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2
    }
    return [
        node.name
        for node in graph.node
        if node.op_type in WEIGHT and node.input[WEIGHT[node.op_type]] in matrices
    ]
