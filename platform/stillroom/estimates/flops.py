"""FLOPs of training, and what a device could do of them: arithmetic, without torch.

Of a text of l tokens, of weights in linear layers N (frozen) and A (trained), L layers whose
queries have width a:
  forward   2 l (N + A) + 4 L l² a
  backward  2 l N + 4 l A + 8 L l² a    frozen weights pass the gradient on, and get none themselves
MFU, the share of the device's peak that training makes use of, counts these alone: neither padding
nor what is computed twice to save memory, by checkpoints or GradCache. Embeddings, norms, softmax
and what a text costs once are left out, and the first block counts as any other, though its inputs
may want no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillroom.estimates.memory import Training, adapters
from stillroom.estimates.model_shape import Shape

# Dense bfloat16 FLOP/s of the vendor's data sheets, by a part of the device's name.
PEAK = {
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
    """FLOP/s of a device, by the name that its driver gives it or that `memory.GPUS` does; None of
    one that is not known."""
    name = device.replace(" ", "")
    return next((most for part, most in PEAK.items() if part in name), None)


@dataclass(frozen=True)
class Flops:
    """What texts cost a model, its language model's head apart.

    Attributes:
        frozen, trained: N and A.
        attention: L a.
    """

    frozen: float
    trained: float
    attention: int

    @classmethod
    def of(cls, shape: Shape, added: float | None) -> "Flops":
        """Of an architecture whose adapters have so many weights; None trains all of its own."""
        own = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
        frozen, trained = (0, own) if added is None else (own, added)
        return cls(frozen, trained, shape.layers * shape.attention)

    @classmethod
    def planned(cls, shape: Shape, run: Training) -> "Flops":
        """As it will be trained, with its adapters and latent attention."""
        alone = cls.of(shape, None if run.rank is None else adapters(shape, run))
        if run.latents is None:
            return alone
        _, heads, size = run.latents
        h = shape.hidden
        # Queries and their way back, and a gated MLP; keys and values are the latents' alone.
        return replace(alone, trained=alone.trained + 2 * h * heads * (size or h) + 12 * h * h)

    def forward(self, lengths: Sequence[int]) -> float:
        """Of texts with so many tokens each."""
        tokens, squares = _sums(lengths)
        return 2 * tokens * (self.frozen + self.trained) + 4 * squares * self.attention

    def backward(self, lengths: Sequence[int]) -> float:
        tokens, squares = _sums(lengths)
        linear = 2 * tokens * self.frozen + 4 * tokens * self.trained
        return linear + 8 * squares * self.attention


def step(shape: Shape, run: Training) -> float:
    """Of one worker's share of a step, forward and backward, its predicted tokens included."""
    model, total = Flops.planned(shape, run), 0.0
    for texts, tokens in run.embedded:
        total += texts * (model.forward([tokens]) + model.backward([tokens]))
    if run.predicted is not None:
        texts, tokens, share = run.predicted
        body = Flops.planned(shape, replace(run, latents=None))  # which pools, and predicts nothing
        total += texts * (body.forward([tokens]) + body.backward([tokens]))
        # The head: there, back to the states and, where every weight is trained, to its own.
        passes = 3 if run.rank is None else 2
        total += texts * tokens * share * 2.0 * passes * shape.vocabulary * shape.hidden
    return total


def _sums(lengths: Sequence[int]) -> tuple[int, int]:
    return sum(lengths), sum(length * length for length in lengths)
