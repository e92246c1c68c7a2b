"""What a worker's memory must hold while a phase trains: arithmetic, without torch.

Letters in formulas: P weights in all, T of them trained, W workers; h the width of the states, a of
all heads' queries, f of the MLP, l tokens of a text; c bytes of a number in the precision that is
computed in. Every text counts as if it were as long as it may be, and all parts as if they peaked
at once, so a run takes less than this more often than more. What is not counted is kept back in
`GPUS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from stillroom.estimates.model_shape import Shape

GIB = 2**30

FLOAT = 4  # bytes of a float32

# Elements, DeepSpeed's defaults: of the buffer that gradients are reduced through, and of the
# weights that ZeRO-3 keeps gathered.
BUCKET, LIVE = 500_000_000, 1_000_000_000

# GiB that tensors may fill: what the driver reports, less 2 GiB for the CUDA context, the kernels'
# workspaces and NCCL's buffers.
GPUS = {
    "H200-141G": 138.0,
    "H100-80G": 77.5,
    "A100-80G": 77.0,
    "A100-40G": 37.5,
    "L40S-48G": 42.5,
    "V100-32G": 29.5,
    "RTX4090-24G": 21.5,
    "RTX3090-24G": 21.5,
    "L4-24G": 20.0,
    "A10G-24G": 20.0,
    "T4-16G": 12.5,
}

ONLY_EMULATE_BFLOAT16 = {"V100-32G", "T4-16G"}


@dataclass(frozen=True)
class Training:
    """What a phase asks of one worker, in plain numbers.

    Attributes:
        rank: of the adapters; None trains every weight.
        dropout: of the adapters' inputs.
        latents: of the pooling: how many, heads, dims of a head (None: the states' own).
        head: the language model's head is there, for tokens are predicted.
        embedded: (texts, tokens of each) that this worker embeds in one step.
        predicted: texts, tokens of each, and the share of tokens that is predicted.
        candidates: what a query is scored against, of all workers.
        sizes: how many Matryoshka sizes are scored.
    """

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    rank: int | None = None
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    decomposed: bool = False
    latents: tuple[int, int, int | None] | None = None
    head: bool = False
    embedded: tuple[tuple[int, int], ...] = ()
    predicted: tuple[int, int, float] | None = None
    candidates: int = 0
    sizes: int = 1
    workers: int = 1
    deepspeed: bool = False
    zero_stage: int = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    micro_tokens: int = 16384
    gradcache: bool = False
    gradient_checkpointing: bool = False

    @property
    def compute(self) -> int:
        """c: bytes of a number that is computed with."""
        return FLOAT if self.precision == "float32" else 2

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        lengths = [tokens for _, tokens in self.embedded]
        return max([*lengths, self.predicted[1] if self.predicted else 0])

    def at_once(self) -> int:
        """Tokens of one forward: a micro-batch holds a text at least, and no more than there is."""
        rows = [texts * tokens for texts, tokens in self.embedded]
        rows += [self.predicted[0] * self.predicted[1]] if self.predicted else []
        return min(max(rows), max(self.micro_tokens, self.longest))

    def kept(self) -> int:
        """Tokens whose activations wait for the backward: without GradCache all that are
        embedded; predicted tokens never wait for one another."""
        every = sum(texts * tokens for texts, tokens in self.embedded)
        return self.at_once() if self.gradcache else max(every, self.at_once())


def adapters(shape: Shape, run: Training) -> int:
    """Weights of LoRA: r (in + out) a linear layer that it is put on, and with DoRA out more."""
    if run.rank is None:
        return 0
    found = 0
    for linear in shape.linears:
        if run.targets == "all-linear" or any(
            f".{linear.name}".endswith(f".{target}") for target in run.targets
        ):
            found += run.rank * (linear.inputs + linear.outputs)
            found += linear.outputs if run.decomposed else 0
    return shape.layers * found


def latent_attention(shape: Shape, run: Training) -> int:
    """Weights of NV-Embed's pooling (arXiv 2405.17428, §3.2): n latents, n h; queries, keys, values
    and their way back, 4 h × (heads × dims of a head); a gated MLP of 4 h, 12 h²; its biases and
    three norms, 15 h."""
    if run.latents is None:
        return 0
    count, heads, size = run.latents
    h = shape.hidden
    return count * h + 4 * h * heads * (size or h) + 12 * h * h + 15 * h


def frozen_and_trained(shape: Shape, run: Training) -> tuple[int, int]:
    """P - T and T. The head is copied from tied embeddings, and so is counted always."""
    base = shape.weights + (shape.vocabulary * shape.hidden if run.head else 0)
    added = adapters(shape, run) + latent_attention(shape, run)
    return (0, base + added) if run.rank is None else (base, added)


def weights(shape: Shape, run: Training) -> float:
    """c (P - T) + 4 T: what stays frozen is held in the precision that is computed in, what is
    trained in float32. ZeRO-3 (arXiv 1910.02054, §5.3) leaves each worker 1/W of both."""
    frozen, trained = frozen_and_trained(shape, run)
    return (run.compute * frozen + FLOAT * trained) / _shared(run, from_stage=3)


def gathered(shape: Shape, run: Training) -> float:
    """ZeRO-3 alone: what a forward brings together, at most LIVE weights at once."""
    if run.zero_stage < 3:
        return 0.0
    frozen, trained = frozen_and_trained(shape, run)
    whole = run.compute * frozen + FLOAT * trained
    return whole * min(1.0, LIVE / (frozen + trained))


def rounded(shape: Shape, run: Training) -> float:
    """c T: autocast keeps a copy of every trained weight that it rounded, until the forward is
    over. Nothing in float32."""
    return 0.0 if run.compute == FLOAT else run.compute * frozen_and_trained(shape, run)[1]


def gradients(shape: Shape, run: Training) -> float:
    """4 T, in float32 as the weights; from ZeRO-2 on 1/W of it (arXiv 1910.02054, §5.2)."""
    return FLOAT * frozen_and_trained(shape, run)[1] / _shared(run, from_stage=2)


def optimizer(shape: Shape, run: Training) -> float:
    """8 T: AdamW's two moments in float32; from ZeRO-1 on 1/W of them (arXiv 1910.02054, §5.1).
    ZeRO 1 and 2 clone their share of the weights, 4 T / W, though these are float32 already; the
    plain optimizer and ZeRO-3 do not."""
    cloned = FLOAT if run.zero_stage in (1, 2) else 0
    return (2 * FLOAT + cloned) * frozen_and_trained(shape, run)[1] / _shared(run, from_stage=1)


def exchange(shape: Shape, run: Training) -> float:
    """The buffers that gradients are summed through: a bucket's worth of them at a time by
    DeepSpeed, 4 min(T, BUCKET), even for one worker alone from ZeRO-1 on. Plain workers join their
    gradients and divide the sum, 8 T; one alone has none."""
    trained = frozen_and_trained(shape, run)[1]
    if run.workers == 1 and not run.zero_stage:
        return 0.0
    joined = run.zero_stage or run.deepspeed
    return FLOAT * min(trained, BUCKET) if joined else 2 * FLOAT * trained


def activations(shape: Shape, run: Training) -> float:
    """What the backward needs: `per_layer` bytes for every layer and token that waits. With
    checkpoints (arXiv 1604.06174) a layer keeps its input, and its insides are there for one layer
    and one micro-batch alone. To this come the last norm, the insides of latent attention, and the
    gradients on their way through one layer, 2 c (f + h)."""
    layers, kept, once = shape.layers, run.kept(), run.at_once()
    if run.gradient_checkpointing:
        inside = kept * layers * _stream(run) * shape.hidden + once * per_layer(shape, run)
    else:
        inside = kept * layers * per_layer(shape, run)
    outside = kept * (_per_norm(shape, run) + _per_token_of_latents(shape, run))
    return inside + outside + once * 2 * run.compute * (shape.mlp + shape.hidden)


def per_layer(shape: Shape, run: Training) -> float:
    """Bytes a token that one layer keeps for its backward. The sum of
      norms      their inputs in float32, 2 × 4 h; an RMSNorm that is trained keeps its output, too
      inputs     of the linear layers, c each: h, a, h, f, for those side by side share theirs.
                 Where float32 states are rounded, each has a copy of its own; where adapters drop
                 inputs out, too, with a byte of mask
      attention  queries, keys and values, repeated for all heads, and outputs, 4 c a; a row of
                 the mask, c l
      MLP        c f, or 3 c f where it is gated
    A kernel that fuses some of it keeps less."""
    h, a, f, c = shape.hidden, shape.attention, shape.mlp, run.compute
    full = run.rank is None
    each = sum(linear.inputs for linear in shape.linears)
    if not full and run.dropout:
        inputs = each * (c + 1)
    elif full and c < FLOAT:
        inputs = each * c
    else:
        inputs = (2 * h + a + f) * c
    attention = c * (4 * a + run.longest)
    return 2 * _per_norm(shape, run) + inputs + attention + c * f * (3 if shape.gated else 1)


def logits(shape: Shape, run: Training) -> float:
    """Predicted tokens × vocabulary × (c + 3 × 4): logits, the same in float32, their softmax's
    logarithm and its gradient, of one micro-batch."""
    if run.predicted is None:
        return 0.0
    texts, tokens, share = run.predicted
    at_once = min(texts * tokens, max(run.micro_tokens, tokens))
    return share * at_once * shape.vocabulary * (run.compute + 3 * FLOAT)


def scores(shape: Shape, run: Training) -> float:
    """Contrastive alone: everyone's vectors and their gradients, 2 × 4 n h, and a worker's b × n
    scores, once plain, over the temperature, as the softmax's logarithm and as gradient, with two
    masks: b n (4 × 4 + 2), for each Matryoshka size."""
    if not run.candidates:
        return 0.0
    vectors = 2 * FLOAT * run.candidates * shape.hidden
    return vectors + run.sizes * run.embedded[0][0] * run.candidates * (4 * FLOAT + 2)


def _shared(run: Training, *, from_stage: int) -> int:
    return run.workers if run.zero_stage >= from_stage else 1


def _stream(run: Training) -> int:
    """Bytes of a number in the residual stream: float32 weights make it float32."""
    return FLOAT if run.rank is None else run.compute


def _per_norm(shape: Shape, run: Training) -> int:
    """Bytes a token: the input in float32; of an RMSNorm that is trained the output, too."""
    return FLOAT * shape.hidden * (2 if shape.decoder and run.rank is None else 1)


def _per_token_of_latents(shape: Shape, run: Training) -> int:
    """Bytes a token, c each: queries and what they found, 2 heads × dims; two norms, inputs and
    outputs, 4 h; the gated MLP, 16 h."""
    if run.latents is None:
        return 0
    _, heads, size = run.latents
    return run.compute * (2 * heads * (size or shape.hidden) + 20 * shape.hidden)


PARTS: dict[str, Callable[[Shape, Training], float]] = {
    "weights": weights,
    "gathered weights": gathered,
    "rounded weights": rounded,
    "gradients": gradients,
    "optimizer": optimizer,
    "exchange": exchange,
    "activations": activations,
    "logits": logits,
    "scores": scores,
}

OFFLOADED = {
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("optimizer", "weights"),
}


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part in a worker's GPU, or without one in its memory, and what is offloaded
    from there to its main memory."""

    parts: dict[str, float]
    offloaded: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        # What would be shown as 0.0 is not shown.
        named = [f"{n} {size / GIB:.1f}" for n, size in self.parts.items() if size > 0.05 * GIB]
        away = [f"{n} {size / GIB:.1f}" for n, size in self.offloaded.items()]
        parts = f": {', '.join(named)}" if named else ""
        rest = f"; offloaded: {', '.join(away)}" if away else ""
        return f"{self.total / GIB:.1f} GiB a worker{parts}{rest}"


def estimate(shape: Shape, run: Training) -> Estimate:
    """All parts of one worker's memory."""
    parts = {name: part(shape, run) for name, part in PARTS.items()}
    away = {name: parts.pop(name) for name in OFFLOADED[run.offload]}
    return Estimate(parts, away)


def advice(shape: Shape, run: Training, usable: float) -> list[str]:
    """Settings of scale.teacher with which a run fits into `usable` bytes: one where one does it,
    else several, none of which could be left out. Empty when all would not do."""

    def fits(*changes: dict[str, Any]) -> bool:
        merged = {name: value for change in changes for name, value in change.items()}
        return estimate(shape, replace(run, **merged)).total <= usable

    changes = list(_changes(run))
    for change in changes:
        if fits(change):
            return _settings(change)
    taken: dict[str, dict[str, Any]] = {}
    # Smaller micro-batches last: together with another setting a moderate size may do.
    for change in sorted(changes, key=lambda one: "micro_tokens" in one):
        taken[next(iter(change))] = change  # a later one of its kind takes its place
        if fits(*taken.values()):
            for name in [*taken]:
                others = [one for other, one in taken.items() if other != name]
                if fits(*others):
                    del taken[name]
            return [setting for one in taken.values() for setting in _settings(one)]
    return []


def _changes(run: Training) -> Iterator[dict[str, Any]]:
    """What may be set otherwise, the cheapest in time first."""
    micro = run.micro_tokens // 2
    while micro >= run.longest:
        yield {"micro_tokens": micro}
        micro //= 2
    if run.workers > 1:
        for stage in range(run.zero_stage + 1, 4):
            yield {"zero_stage": stage, "deepspeed": True}
    if not run.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if run.embedded and not run.gradcache:
        yield {"gradcache": True}
    if run.zero_stage and run.offload == "none":
        yield {"offload": "optimizer"}


def _settings(change: dict[str, Any]) -> list[str]:
    written = {"deepspeed": "engine=deepspeed"}
    return [written.get(name) or f"{name}={str(value).lower()}" for name, value in change.items()]
