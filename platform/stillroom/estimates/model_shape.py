"""An architecture's sizes, from a Hugging Face config.json: arithmetic, without torch.

In formulas: c the config, h hidden size, f width of the MLP, a width of all heads' queries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block; `name` is its path in the block."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, including the bias."""
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """An architecture's sizes.

    Attributes:
        linears: of one block.
        norms: weights of one block's norms.
        outside: weights outside the blocks, without a language model's head.
        attention: width of all heads' queries together.
        mlp: width inside the MLP.
        gated: the MLP multiplies two projections.
        decoder: its norms are RMSNorms in plain PyTorch, which keep more for the backward than
            LayerNorms.
    """

    hidden: int
    layers: int
    vocabulary: int
    linears: tuple[Linear, ...]
    norms: int
    outside: int
    attention: int
    mlp: int
    gated: bool
    decoder: bool

    @property
    def weights(self) -> int:
        """Number of weights, without a language-model head."""
        inside = sum(linear.weights for linear in self.linears) + self.norms
        return self.layers * inside + self.outside


def _decoder(
    c: Mapping[str, Any],
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    norms: int = 2,
    head_norms: bool = False,
) -> ModelShape:
    h, f, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    size = c.get("head_dim") or h // heads
    a, kv = heads * size, (c.get("num_key_value_heads") or heads) * size
    return ModelShape(
        hidden=h,
        layers=c["num_hidden_layers"],
        vocabulary=c["vocab_size"],
        linears=(
            Linear("self_attn.q_proj", h, a, qkv_bias),
            Linear("self_attn.k_proj", h, kv, qkv_bias),
            Linear("self_attn.v_proj", h, kv, qkv_bias),
            Linear("self_attn.o_proj", a, h, out_bias),
            Linear("mlp.gate_proj", h, f, mlp_bias),
            Linear("mlp.up_proj", h, f, mlp_bias),
            Linear("mlp.down_proj", f, h, mlp_bias),
        ),
        norms=norms * h + (2 * size if head_norms else 0),
        outside=c["vocab_size"] * h + h,
        attention=a,
        mlp=f,
        gated=True,
        decoder=True,
    )


def _llama(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias"))
    return _decoder(c, qkv_bias=bias, out_bias=bias, mlp_bias=bool(c.get("mlp_bias")))


def _gemma3(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias"))
    return _decoder(c, qkv_bias=bias, out_bias=bias, norms=4, head_norms=True)


def _qwen3(c: Mapping[str, Any]) -> ModelShape:
    bias = bool(c.get("attention_bias"))
    return _decoder(c, qkv_bias=bias, out_bias=bias, head_norms=True)


def _encoder(c: Mapping[str, Any], names: Sequence[str], outside: int) -> ModelShape:
    h, f = c["hidden_size"], c["intermediate_size"]
    q, k, v, out, up, down = names
    return ModelShape(
        hidden=h,
        layers=c["num_hidden_layers"],
        vocabulary=c["vocab_size"],
        linears=(
            *(Linear(name, h, h, True) for name in (q, k, v, out)),
            Linear(up, h, f, True),
            Linear(down, f, h, True),
        ),
        norms=4 * h,
        outside=(c["vocab_size"] + c["max_position_embeddings"]) * h + 2 * h + outside,
        attention=h,
        mlp=f,
        gated=False,
        decoder=False,
    )


BERT = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip

MPNET = (
    *(f"attention.attn.{name}" for name in "qkvo"), "intermediate.dense", "output.dense",
)  # fmt: skip


def _bert(c: Mapping[str, Any]) -> ModelShape:
    return _encoder(c, BERT, c.get("type_vocab_size", 2) * c["hidden_size"])


def _mpnet(c: Mapping[str, Any]) -> ModelShape:
    buckets = c.get("relative_attention_num_buckets", 32)
    return _encoder(c, MPNET, buckets * c["num_attention_heads"])


def _modernbert(c: Mapping[str, Any]) -> ModelShape:
    h, f = c["hidden_size"], c["intermediate_size"]
    attention, mlp = bool(c.get("attention_bias")), bool(c.get("mlp_bias"))
    norm = h * (2 if c.get("norm_bias") else 1)
    return ModelShape(
        hidden=h,
        layers=c["num_hidden_layers"],
        vocabulary=c["vocab_size"],
        linears=(
            Linear("attn.Wqkv", h, 3 * h, attention),
            Linear("attn.Wo", h, h, attention),
            Linear("mlp.Wi", h, 2 * f, mlp),
            Linear("mlp.Wo", f, h, mlp),
        ),
        norms=2 * norm,
        # Embeddings and the last norm; the embeddings' norm stands for the norm that block 0 lacks.
        outside=c["vocab_size"] * h + norm,
        attention=h,
        mlp=f,
        gated=True,
        decoder=False,
    )


FAMILIES: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "llama": _llama,
    "mistral": _decoder,
    "qwen2": lambda c: _decoder(c, qkv_bias=True),
    "qwen3": _qwen3,
    "gemma": _llama,
    "gemma3_text": _gemma3,
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "mpnet": _mpnet,
    "modernbert": _modernbert,
}


def model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Sizes from a Hugging Face config.json; None for an architecture that is not in `FAMILIES`."""
    family = FAMILIES.get(str(config.get("model_type")))
    return None if family is None else family(config)


def resized_config(
    config: Mapping[str, Any],
    *,
    layers: int | None = None,
    vocabulary_size: int | None = None,
    size: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The config.json of a student made from a base with this config.

    Args:
        layers: number of the base's layers that it keeps.
        vocabulary_size: number of tokens.
        size: of a student with random weights: layers, hidden, heads and, if not 4 × hidden,
            intermediate.
    """
    changed = {**config}
    if size is not None:
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        sizes = {"intermediate": 4 * size["hidden"], **size}
        values = (sizes[name] for name in ("layers", "hidden", "heads", "intermediate"))
        changed |= dict(zip(names, values, strict=True))
    if layers is not None:
        changed["num_hidden_layers"] = layers
    if vocabulary_size is not None:
        changed["vocab_size"] = vocabulary_size
    return changed
