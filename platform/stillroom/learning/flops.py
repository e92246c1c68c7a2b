"""FLOPs of training, and what a device could do of them: arithmetic, without torch.

Of a text of l tokens, of weights in linear layers N (frozen) and A (trained), L layers whose
queries have width a:
  forward   2 l (N + A) + 4 L l² a
  backward  2 l N + 4 l A + 8 L l² a    frozen weights pass the gradient on, and get none themselves
MFU, the share of the device's peak that training makes use of, counts these alone: neither padding
nor what is computed twice to save memory, by checkpoints or GradCache. A language model's head is
not counted, nor is what a text costs once, such as pooling; and the first block counts as any
other, though its inputs may want no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.learning.shape import Shape

# Dense bfloat16 FLOP/s of the vendor's data sheets, by a part of the device's name.
PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
    "A10G": 70e12,
}


def peak_flops(device: str) -> float | None:
    """FLOP/s of a device by the name that its driver gives it; None of one that is not known."""
    return next((most for part, most in PEAK.items() if part in device), None)


@dataclass(frozen=True)
class Flops:
    """What texts cost a model.

    Attributes:
        frozen, trained: N and A.
        attention: L a.
    """

    frozen: int
    trained: int
    attention: int

    @classmethod
    def of(cls, shape: Shape, adapters: int | None) -> "Flops":
        """Of an architecture whose adapters have so many weights; None trains all of its own."""
        own = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
        frozen, trained = (0, own) if adapters is None else (own, adapters)
        return cls(frozen, trained, shape.layers * shape.attention)

    def forward(self, lengths: Sequence[int]) -> float:
        """Of texts with so many tokens each."""
        tokens, squares = _sums(lengths)
        return 2 * tokens * (self.frozen + self.trained) + 4 * squares * self.attention

    def backward(self, lengths: Sequence[int]) -> float:
        tokens, squares = _sums(lengths)
        linear = 2 * tokens * self.frozen + 4 * tokens * self.trained
        return linear + 8 * squares * self.attention


def _sums(lengths: Sequence[int]) -> tuple[int, int]:
    return sum(lengths), sum(length * length for length in lengths)
