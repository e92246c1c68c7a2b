"""The memory that one worker needs to train a phase: arithmetic, without torch.

Letters in formulas: P weights in all, T of them trained, W workers; h the width of the states, a of
all heads' queries, f of the MLP, l tokens of a text; c bytes of a number in the compute precision.
Every text is assumed to have its maximum length, and all parts to peak at the same time, so
training usually takes less than this. `GPU_MEMORY_GIB` reserves memory for everything else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from stillroom.estimates.model_shape import ModelShape

GIB = 2**30
FLOAT = 4  # bytes of a float32

# DeepSpeed's defaults, in elements: the buffer that gradients are reduced through, and the weights
# that ZeRO-3 keeps gathered.
REDUCE_BUCKET, ZERO3_LIVE_WEIGHTS = 500_000_000, 1_000_000_000

# GiB that tensors may fill: what the driver reports, minus 2 GiB for the CUDA context, the kernels'
# workspaces and NCCL's buffers.
GPU_MEMORY_GIB = {
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

WITHOUT_NATIVE_BFLOAT16 = {"V100-32G", "T4-16G"}


@dataclass(frozen=True)
class TrainingSetup:
    """A phase's demands on one worker, in plain numbers.

    Attributes:
        lora_rank: of the adapters; None trains every weight.
        targets: the linear layers that have adapters.
        dropout: of the adapters' inputs.
        latents: of latent-attention pooling: number of latents, heads, dims of a head (None: the
            states' width).
        lm_head: the model has its language-model head, to predict tokens.
        embedded: (texts, tokens of each) that this worker embeds in one step.
        predicted: (texts, tokens of each, share of the tokens that is predicted).
        candidates: the passages of all workers that a query is scored against.
        matryoshka_sizes: how many sizes are scored.
    """

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    lora_rank: int | None = None
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    use_dora: bool = False
    latents: tuple[int, int, int | None] | None = None
    lm_head: bool = False
    embedded: tuple[tuple[int, int], ...] = ()
    predicted: tuple[int, int, float] | None = None
    candidates: int = 0
    matryoshka_sizes: int = 1
    workers: int = 1
    deepspeed: bool = False
    zero_stage: int = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    micro_batch_tokens: int = 16384
    gradcache: bool = False
    gradient_checkpointing: bool = False

    @property
    def number_bytes(self) -> int:
        """c: bytes of a number in the compute precision."""
        return FLOAT if self.precision == "float32" else 2

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text."""
        lengths = [tokens for _, tokens in self.embedded]
        return max([*lengths, self.predicted[1] if self.predicted else 0])

    def forward_tokens(self) -> int:
        """Tokens of one forward: a micro-batch has one text at least, and all texts at most."""
        rows = [texts * tokens for texts, tokens in self.embedded]
        rows += [self.predicted[0] * self.predicted[1]] if self.predicted else []
        return min(max(rows), max(self.micro_batch_tokens, self.longest_text))

    def waiting_tokens(self) -> int:
        """Tokens whose activations wait for the backward: without GradCache all embedded ones;
        predicted tokens never wait for each other."""
        embedded = sum(texts * tokens for texts, tokens in self.embedded)
        return self.forward_tokens() if self.gradcache else max(embedded, self.forward_tokens())


def adapter_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """Weights of LoRA: r (in + out) per adapted linear layer, and with DoRA another `out`."""
    if setup.lora_rank is None:
        return 0
    weights_per_layer = 0
    for linear in shape.linears:
        if setup.targets == "all-linear" or any(
            f".{linear.name}".endswith(f".{target}") for target in setup.targets
        ):
            weights_per_layer += setup.lora_rank * (linear.inputs + linear.outputs)
            weights_per_layer += linear.outputs if setup.use_dora else 0
    return shape.layers * weights_per_layer


def latent_attention_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """Weights of NV-Embed's pooling (arXiv 2405.17428, §3.2): n latents, n h; query, key, value and
    output projections, 4 h × (heads × dims of a head); a gated MLP of 4 h, 12 h²; its biases and
    three norms, 15 h."""
    if setup.latents is None:
        return 0
    count, heads, size = setup.latents
    h = shape.hidden
    return count * h + 4 * h * heads * (size or h) + 12 * h * h + 15 * h


def frozen_and_trained_parameters(shape: ModelShape, setup: TrainingSetup) -> tuple[int, int]:
    """P - T and T. The head is copied from tied embeddings, so it always counts."""
    base = shape.weights + (shape.vocabulary * shape.hidden if setup.lm_head else 0)
    added = adapter_parameters(shape, setup) + latent_attention_parameters(shape, setup)
    return (0, base + added) if setup.lora_rank is None else (base, added)


def weights(shape: ModelShape, setup: TrainingSetup) -> float:
    """c (P - T) + 4 T: frozen weights are in the compute precision, trained ones in float32. ZeRO-3
    (arXiv 1910.02054, §5.3) leaves each worker 1/W of both."""
    frozen, trained = frozen_and_trained_parameters(shape, setup)
    return (setup.number_bytes * frozen + FLOAT * trained) / _shared(setup, from_stage=3)


def gathered_weights(shape: ModelShape, setup: TrainingSetup) -> float:
    """Only under ZeRO-3: the weights that a forward gathers, at most ZERO3_LIVE_WEIGHTS at once."""
    if setup.zero_stage < 3:
        return 0.0
    frozen, trained = frozen_and_trained_parameters(shape, setup)
    whole = setup.number_bytes * frozen + FLOAT * trained
    return whole * min(1.0, ZERO3_LIVE_WEIGHTS / (frozen + trained))


def rounded_weights(shape: ModelShape, setup: TrainingSetup) -> float:
    """c T: autocast keeps a rounded copy of every trained weight until the forward ends. Nothing in
    float32."""
    return (
        0.0
        if setup.number_bytes == FLOAT
        else setup.number_bytes * frozen_and_trained_parameters(shape, setup)[1]
    )


def gradients(shape: ModelShape, setup: TrainingSetup) -> float:
    """4 T, in float32 as the weights; from ZeRO-2 on 1/W of it (arXiv 1910.02054, §5.2)."""
    return FLOAT * frozen_and_trained_parameters(shape, setup)[1] / _shared(setup, from_stage=2)


def optimizer(shape: ModelShape, setup: TrainingSetup) -> float:
    """8 T: AdamW's two moments in float32; from ZeRO-1 on 1/W of them (arXiv 1910.02054, §5.1).
    ZeRO 1 and 2 also clone their share of the weights, 4 T / W, though these are float32 already;
    the plain optimizer and ZeRO-3 do not."""
    cloned = FLOAT if setup.zero_stage in (1, 2) else 0
    return (
        (2 * FLOAT + cloned)
        * frozen_and_trained_parameters(shape, setup)[1]
        / _shared(setup, from_stage=1)
    )


def exchange(shape: ModelShape, setup: TrainingSetup) -> float:
    """The buffers that gradients are summed through. DeepSpeed sums one bucket at a time,
    4 min(T, REDUCE_BUCKET), from ZeRO-1 on even for a single worker. Plain workers concatenate
    their gradients and divide the sum, 8 T; a single one needs none."""
    trained = frozen_and_trained_parameters(shape, setup)[1]
    if setup.workers == 1 and not setup.zero_stage:
        return 0.0
    joined = setup.zero_stage or setup.deepspeed
    return FLOAT * min(trained, REDUCE_BUCKET) if joined else 2 * FLOAT * trained


def activations(shape: ModelShape, setup: TrainingSetup) -> float:
    """Memory for the backward: `per_layer` bytes for every layer and waiting token. With gradient
    checkpointing (arXiv 1604.06174) a layer keeps only its input, and its activations exist for one
    layer and one micro-batch at a time. Also counted: the last norm, the activations of latent
    attention, and the gradients that pass through one layer, 2 c (f + h)."""
    layers, waiting, forward = shape.layers, setup.waiting_tokens(), setup.forward_tokens()
    if setup.gradient_checkpointing:
        inputs = waiting * layers * _stream(setup) * shape.hidden
        inside = inputs + forward * per_layer(shape, setup)
    else:
        inside = waiting * layers * per_layer(shape, setup)
    outside = waiting * (_per_norm(shape, setup) + _per_token_of_latents(shape, setup))
    return inside + outside + forward * 2 * setup.number_bytes * (shape.mlp + shape.hidden)


def per_layer(shape: ModelShape, setup: TrainingSetup) -> float:
    """Bytes per token that one layer keeps for its backward. The sum of
      norms      their inputs in float32, 2 × 4 h; a trained RMSNorm keeps its output too
      inputs     of the linear layers, c each: h, a, h, f; parallel layers share their input.
                 Where float32 states are rounded, each layer has a separate copy; with adapter
                 dropout too, and one byte of mask
      attention  queries, keys and values, repeated for all heads, and outputs, 4 c a; a row of
                 the mask, c l
      MLP        c f, or 3 c f where it is gated
    Fused kernels keep less."""
    h, a, f, c = shape.hidden, shape.attention, shape.mlp, setup.number_bytes
    full = setup.lora_rank is None
    each = sum(linear.inputs for linear in shape.linears)
    if not full and setup.dropout:
        inputs = each * (c + 1)
    elif full and c < FLOAT:
        inputs = each * c
    else:
        inputs = (2 * h + a + f) * c
    attention = c * (4 * a + setup.longest_text)
    return 2 * _per_norm(shape, setup) + inputs + attention + c * f * (3 if shape.gated else 1)


def logits(shape: ModelShape, setup: TrainingSetup) -> float:
    """For one micro-batch, predicted tokens × vocabulary × (c + 3 × 4): the logits, the same in
    float32, their log-softmax and its gradient."""
    if setup.predicted is None:
        return 0.0
    texts, tokens, share = setup.predicted
    at_once = min(texts * tokens, max(setup.micro_batch_tokens, tokens))
    return share * at_once * shape.vocabulary * (setup.number_bytes + 3 * FLOAT)


def scores(shape: ModelShape, setup: TrainingSetup) -> float:
    """Only for contrastive losses: all workers' vectors and their gradients, 2 × 4 n h; and per
    Matryoshka size a worker's b × n scores, plain, divided by the temperature, as log-softmax and
    as gradient, with two masks: b n (4 × 4 + 2)."""
    if not setup.candidates:
        return 0.0
    vectors = 2 * FLOAT * setup.candidates * shape.hidden
    return vectors + setup.matryoshka_sizes * setup.embedded[0][0] * setup.candidates * (
        4 * FLOAT + 2
    )


def _shared(setup: TrainingSetup, *, from_stage: int) -> int:
    return setup.workers if setup.zero_stage >= from_stage else 1


def _stream(setup: TrainingSetup) -> int:
    """Bytes of a number in the residual stream, which trained float32 weights make float32."""
    return FLOAT if setup.lora_rank is None else setup.number_bytes


def _per_norm(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes per token: the input in float32; of a trained RMSNorm the output too."""
    return FLOAT * shape.hidden * (2 if shape.decoder and setup.lora_rank is None else 1)


def _per_token_of_latents(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes per token, c each: queries and attention outputs, 2 heads × dims; two norms' inputs and
    outputs, 4 h; the gated MLP, 16 h."""
    if setup.latents is None:
        return 0
    _, heads, size = setup.latents
    return setup.number_bytes * (2 * heads * (size or shape.hidden) + 20 * shape.hidden)


PARTS: dict[str, Callable[[ModelShape, TrainingSetup], float]] = {
    "weights": weights,
    "gathered weights": gathered_weights,
    "rounded weights": rounded_weights,
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
class MemoryEstimate:
    """The memory of one worker, in bytes.

    Attributes:
        parts: in its GPU, or in main memory without a GPU.
        offloaded: from the GPU to main memory.
    """

    parts: dict[str, float]
    offloaded: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes that are not offloaded."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        # Parts that would show as 0.0 are left out.
        named = [f"{n} {size / GIB:.1f}" for n, size in self.parts.items() if size > 0.05 * GIB]
        away = [f"{n} {size / GIB:.1f}" for n, size in self.offloaded.items()]
        parts = f": {', '.join(named)}" if named else ""
        rest = f"; offloaded: {', '.join(away)}" if away else ""
        return f"{self.total / GIB:.1f} GiB per worker{parts}{rest}"


def estimate_memory(shape: ModelShape, setup: TrainingSetup) -> MemoryEstimate:
    """The memory of one worker, part by part."""
    parts = {name: part(shape, setup) for name, part in PARTS.items()}
    away = {name: parts.pop(name) for name in OFFLOADED[setup.offload]}
    return MemoryEstimate(parts, away)


def suggest_settings(shape: ModelShape, setup: TrainingSetup, usable: float) -> list[str]:
    """Settings of scale.teacher that make training fit into `usable` bytes.

    One setting if one is enough, else several, none of which can be left out. Empty when even all
    of them are not enough.
    """

    def fits(*changes: dict[str, Any]) -> bool:
        merged = {name: value for change in changes for name, value in change.items()}
        return estimate_memory(shape, replace(setup, **merged)).total <= usable

    changes = list(_changes(setup))
    for change in changes:
        if fits(change):
            return _settings(change)
    chosen: dict[str, dict[str, Any]] = {}
    # Smaller micro-batches last: with another setting a moderate size may be enough.
    for change in sorted(changes, key=lambda change: "micro_batch_tokens" in change):
        chosen[next(iter(change))] = change  # replaces an earlier change of the same setting
        if fits(*chosen.values()):
            for name in [*chosen]:
                others = [change for other, change in chosen.items() if other != name]
                if fits(*others):
                    del chosen[name]
            return [setting for change in chosen.values() for setting in _settings(change)]
    return []


def _changes(setup: TrainingSetup) -> Iterator[dict[str, Any]]:
    """Changes that save memory, the cheapest in time first."""
    micro = setup.micro_batch_tokens // 2
    while micro >= setup.longest_text:
        yield {"micro_batch_tokens": micro}
        micro //= 2
    if setup.workers > 1:
        for stage in range(setup.zero_stage + 1, 4):
            yield {"zero_stage": stage, "deepspeed": True}
    if not setup.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if setup.embedded and not setup.gradcache:
        yield {"gradcache": True}
    if setup.zero_stage and setup.offload == "none":
        yield {"offload": "optimizer"}


def _settings(change: dict[str, Any]) -> list[str]:
    """The settings as a recipe writes them."""
    special = {"deepspeed": "engine=deepspeed"}
    return [special.get(name) or f"{name}={str(value).lower()}" for name, value in change.items()]
