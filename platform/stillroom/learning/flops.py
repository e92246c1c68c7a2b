"""How many floating-point operations a step takes: arithmetic, without torch.

Of a text of l tokens, with N weights in frozen linear layers and A in trained ones, L layers whose
queries have width a:
  forward   2 l (N + A) + 4 L l² a
  backward  2 l N + 4 l A + 8 L l² a    frozen weights pass the gradient on, and get none themselves
What checkpoints and GradCache compute again is not counted: as MFU has it, the share of a GPU's
peak that these operations alone make up. Embeddings, norms and softmax are left out.
"""

from dataclasses import replace

from stillroom.learning.memory import Training, adapters
from stillroom.learning.shape import Shape

# Dense bfloat16 FLOP/s of the vendor's data sheets, of the GPUs that memory.GPUS knows.
PEAK = {
    "H200-141G": 989e12,
    "H100-80G": 989e12,
    "A100-80G": 312e12,
    "A100-40G": 312e12,
    "L40S-48G": 362e12,
    "RTX4090-24G": 165e12,
    "RTX3090-24G": 71e12,
    "L4-24G": 121e12,
    "A10G-24G": 70e12,
}


def forward(shape: Shape, tokens: int, run: Training) -> float:
    """Of one text, without a language model's head."""
    frozen, trained = linear(shape, run)
    return 2.0 * tokens * (frozen + trained) + 4.0 * scored(shape, tokens)


def backward(shape: Shape, tokens: int, run: Training) -> float:
    frozen, trained = linear(shape, run)
    return tokens * (2.0 * frozen + 4.0 * trained) + 8.0 * scored(shape, tokens)


def step(shape: Shape, run: Training) -> float:
    """Of one worker's share of a step, forward and backward, its predicted tokens included."""
    total = 0.0
    for texts, tokens in run.embedded:
        total += texts * (forward(shape, tokens, run) + backward(shape, tokens, run))
    if run.predicted is not None:
        texts, tokens, share = run.predicted
        body = replace(run, latents=None)  # which pools, and predicts nothing
        total += texts * (forward(shape, tokens, body) + backward(shape, tokens, body))
        # The head: there, back to the states and, where every weight is trained, to its own.
        passes = 3 if run.rank is None else 2
        total += texts * tokens * share * 2.0 * passes * shape.vocabulary * shape.hidden
    return total


def linear(shape: Shape, run: Training) -> tuple[float, float]:
    """N and A: weights that every token meets, frozen and trained."""
    base = shape.layers * sum(one.inputs * one.outputs for one in shape.linears)
    added = adapters(shape, run)
    if run.latents is not None:
        _, heads, size = run.latents
        h = shape.hidden
        # Queries and their way back, and a gated MLP; keys and values are the latents' alone.
        added += 2 * h * heads * (size or h) + 12 * h * h
    return (0.0, base + added) if run.rank is None else (base, added)


def scored(shape: Shape, tokens: int) -> float:
    """L l² a: what attention grows with."""
    return float(shape.layers * tokens**2 * shape.attention)
