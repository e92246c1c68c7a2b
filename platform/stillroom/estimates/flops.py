"""FLOPs of training, and the peak FLOP/s of devices: arithmetic, without torch.

For a text of l tokens, weights in linear layers N (frozen) and A (trained), L layers whose queries
have width a:
  forward   2 l (N + A) + 4 L l² a
  backward  2 l N + 4 l A + 8 L l² a    frozen weights pass on gradients, but have none themselves
MFU, the share of the device's peak that training uses, counts only these: neither padding nor the
recomputation of gradient checkpointing and GradCache. Embeddings, norms, softmax and costs per text
are left out, and the first block counts like any other, though its inputs may need no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillroom.estimates.memory import TrainingSetup, adapter_parameters
from stillroom.estimates.model_shape import ModelShape

# Dense bfloat16 FLOP/s from the vendor's data sheets, by a part of the device's name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100PCIe": 756e12,
    "H100NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX4090": 165e12,
    "RTX3090": 71e12,
    "L4": 121e12,
    "A10G": 70e12,
}


def peak_flops(device: str) -> float | None:
    """Peak FLOP/s of a device; None when it is not known.

    Args:
        device: the driver's name of it, or a key of `memory.GPU_MEMORY_GIB`.
    """
    name = device.replace(" ", "")
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class FlopCounter:
    """The FLOPs that texts cost a model, without a language-model head.

    Attributes:
        frozen, trained: N and A.
        attention: L a.
    """

    frozen: float
    trained: float
    attention: int

    @classmethod
    def of(cls, shape: ModelShape, added: float | None) -> "FlopCounter":
        """FLOPs of an architecture.

        Args:
            added: weights of its adapters; None: every weight is trained.
        """
        own = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
        frozen, trained = (0, own) if added is None else (own, added)
        return cls(frozen, trained, shape.layers * shape.attention)

    @classmethod
    def planned(cls, shape: ModelShape, setup: TrainingSetup) -> "FlopCounter":
        """FLOPs of an architecture with the adapters and latent attention of a training setup."""
        backbone = cls.of(
            shape, None if setup.lora_rank is None else adapter_parameters(shape, setup)
        )
        if setup.latents is None:
            return backbone
        _, heads, size = setup.latents
        h = shape.hidden
        # Query and output projections, and a gated MLP; keys and values are of the latents only.
        latent_attention = 2 * h * heads * (size or h) + 12 * h * h
        return replace(backbone, trained=backbone.trained + latent_attention)

    def forward(self, lengths: Sequence[int]) -> float:
        """FLOPs of one forward over texts with these numbers of tokens."""
        tokens, squares = _sums(lengths)
        return 2 * tokens * (self.frozen + self.trained) + 4 * squares * self.attention

    def backward(self, lengths: Sequence[int]) -> float:
        """FLOPs of one backward over texts with these numbers of tokens."""
        tokens, squares = _sums(lengths)
        linear = 2 * tokens * self.frozen + 4 * tokens * self.trained
        return linear + 8 * squares * self.attention


def step_flops(shape: ModelShape, setup: TrainingSetup) -> float:
    """FLOPs of one worker's share of a step, forward and backward, predicted tokens included."""
    model, total = FlopCounter.planned(shape, setup), 0.0
    for texts, tokens in setup.embedded:
        total += texts * (model.forward([tokens]) + model.backward([tokens]))
    if setup.predicted is not None:
        texts, tokens, share = setup.predicted
        # Latent attention pools; it takes no part in prediction.
        body = FlopCounter.planned(shape, replace(setup, latents=None))
        total += texts * (body.forward([tokens]) + body.backward([tokens]))
        # The head: forward, backward to the states and, where it is trained, to its own weights.
        passes = 3 if setup.lora_rank is None else 2
        total += texts * tokens * share * 2.0 * passes * shape.vocabulary * shape.hidden
    return total


def _sums(lengths: Sequence[int]) -> tuple[int, int]:
    return sum(lengths), sum(length * length for length in lengths)
