"""A Mistral-7B shape with random weights, trained on one GPU: tokens/s, MFU and peak memory.

    make gpu                              # or: python tests/gpu/train_7b.py --pairs 64 --json
    python tests/gpu/train_7b.py --tiny   # the same steps on a CPU, in a second: proves the script

Bidirectional, LoRA of rank 16 on every linear layer, bfloat16, checkpointed activations, passages
of 512 tokens; the project's own runner, objective and engine, with and without GradCache.

MFU is counted by `stillroom.estimates.flops`. HFU also counts repeated work: gradient checkpointing
computes the forward again, and GradCache's first pass once more. So MFU cannot exceed two thirds of
HFU with checkpointing, nor half of it with GradCache as well. There is no padding: all texts have
the same length.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModel, MistralConfig, PreTrainedTokenizerFast

from stillroom.encoders.contract import Contract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.layers.attention import detect_attention
from stillroom.encoders.layers.backbone import checkpoint_activations
from stillroom.encoders.layers.lora import LoraOptions, add_lora
from stillroom.encoders.tokens.batch import Tokens
from stillroom.estimates.flops import FlopCounter, peak_flops
from stillroom.estimates.memory import GIB, TrainingSetup, estimate_memory
from stillroom.estimates.model_shape import model_shape
from stillroom.learning.batch_types import PairBatch
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.micro_batch_runner import MicroBatchRunner
from stillroom.learning.objectives.contrastive import Contrastive


@dataclass(frozen=True)
class Size:
    """Sizes of the model and the batch. The defaults are Mistral-7B on a GPU of 80 GB."""

    hidden: int = 4096
    mlp: int = 14336
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 8
    vocabulary: int = 32000
    rank: int = 16
    precision: str = "bfloat16"
    query_tokens: int = 64
    passage_tokens: int = 512
    pairs: int = 64
    micro_batch_tokens: int = 16384
    warmup: int = 2
    steps: int = 5


TINY = Size(
    hidden=64, mlp=128, layers=2, heads=4, key_value_heads=2, vocabulary=512, rank=4,
    precision="float32", query_tokens=8, passage_tokens=32, pairs=4, micro_batch_tokens=64,
    warmup=0, steps=1,
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Measurements with or without GradCache; only the estimate if memory ran out.

    Attributes:
        tokens_per_second: of queries and passages, each counted once.
        mfu, hfu: shares of the GPU's peak.
        peak_gib, estimated_gib: measured, and estimated by `stillroom check`.
    """

    gradcache: bool
    tokens_per_second: float | None
    mfu: float | None
    hfu: float | None
    peak_gib: float | None
    estimated_gib: float


def encoder(size: Size, device: torch.device) -> Encoder:
    """A random backbone with LoRA and gradient checkpointing, and a tokenizer of one word."""
    config = MistralConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        sliding_window=None,
    )
    config.is_causal = False
    torch.manual_seed(0)
    with device:
        backbone: Any = AutoModel.from_config(config, dtype=getattr(torch, size.precision))
    assert detect_attention(backbone) == "bidirectional"
    checkpoint_activations(backbone)
    backbone = add_lora(backbone, LoraOptions(rank=size.rank, alpha=32))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    contract = Contract(
        base="random",
        architecture="decoder",
        attention="bidirectional",
        pooling="mean",
        max_tokens=size.passage_tokens,
        dims=(size.hidden,),
        precision=size.precision,
        space="random",
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    return Encoder(contract, tokenizer, backbone).to(device).train()


def batch(size: Size) -> PairBatch:
    """Random tokens, so that no text copies another."""
    rng = torch.Generator().manual_seed(0)

    def texts(tokens: int) -> list[Tokens]:
        random_ids = torch.randint(2, size.vocabulary, (size.pairs, tokens), generator=rng)
        return [Tokens(ids) for ids in random_ids.tolist()]

    ids = torch.arange(size.pairs)
    return PairBatch(texts(size.query_tokens), texts(size.passage_tokens), ids, ids)


def measure(size: Size, model: Encoder, *, gradcache: bool) -> Result:
    """Times whole steps after the warm-up steps."""
    shape = model_shape(model.backbone.config.to_dict())
    assert shape is not None
    setup = TrainingSetup(
        precision="float32" if size.precision == "float32" else "bfloat16",
        lora_rank=size.rank,
        embedded=((size.pairs, size.query_tokens), (size.pairs, size.passage_tokens)),
        candidates=size.pairs,
        micro_batch_tokens=size.micro_batch_tokens,
        gradcache=gradcache,
        gradient_checkpointing=True,
    )
    out_of_memory = Result(
        gradcache, None, None, None, None, estimate_memory(shape, setup).total / GIB
    )
    try:
        seconds, peak = _timed(size, model, gradcache)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return out_of_memory
    flops = FlopCounter.planned(shape, setup)
    lengths = size.pairs * [size.query_tokens, size.passage_tokens]
    forward, backward = flops.forward(lengths), flops.backward(lengths)
    on_gpu = model.device.type == "cuda"
    peak_rate = peak_flops(torch.cuda.get_device_name(model.device)) if on_gpu else None
    return replace(
        out_of_memory,
        tokens_per_second=size.pairs * (size.query_tokens + size.passage_tokens) / seconds,
        mfu=None if peak_rate is None else (forward + backward) / seconds / peak_rate,
        hfu=None
        if peak_rate is None
        else (forward * (2 + gradcache) + backward) / seconds / peak_rate,
        peak_gib=peak,
    )


def _timed(size: Size, model: Encoder, gradcache: bool) -> tuple[float, float | None]:
    """Mean seconds of a step, and the peak GiB of tensors on the GPU."""
    engine = TorchEngine(model, weight_decay=0.01, max_grad_norm=1.0)
    objective, pairs = Contrastive(temperature=0.02), batch(size)
    on_gpu = model.device.type == "cuda"
    began = 0.0
    for step in range(size.warmup + size.steps):
        if step == size.warmup:
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
        runner = MicroBatchRunner(
            engine,
            pad_id=0,
            micro_batch_tokens=size.micro_batch_tokens,
            cached=gradcache,
            seed=step,
        )
        loss, _ = objective(runner, pairs)
        runner.backward(loss)
        engine.step(1e-5)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / size.steps
    return seconds, torch.cuda.max_memory_allocated() / GIB if on_gpu else None


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU")
    parser.add_argument("--pairs", type=int, help="of a query and a passage, in a step")
    parser.add_argument("--micro-batch-tokens", type=int, help="the most of one forward")
    parser.add_argument("--steps", type=int, help="that are timed")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("train_7b needs a GPU that CUDA sees. --tiny runs a tiny model on the CPU")
    overrides = {name: getattr(options, name) for name in ("pairs", "micro_batch_tokens", "steps")}
    size = replace(
        TINY if options.tiny else Size(),
        **{name: value for name, value in overrides.items() if value},
    )
    device = torch.device("cpu" if options.tiny else "cuda")
    model = encoder(size, device)
    results = [measure(size, model, gradcache=gradcache) for gradcache in (False, True)]
    machine = "CPU" if options.tiny else torch.cuda.get_device_name()
    if options.json:
        document = {"machine": machine, "torch": torch.__version__, "size": asdict(size)}
        print(json.dumps({**document, "results": [asdict(result) for result in results]}))
        return
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{model.parameters_total - trained:,} frozen weights in {size.precision}, {trained:,} of "
        f"LoRA; {size.pairs} pairs of {size.query_tokens} + {size.passage_tokens} tokens, "
        f"{size.micro_batch_tokens:,} at once; {machine}, torch {torch.__version__}"
    )
    print(f"{'':10}{'tokens/s':>10}{'MFU':>8}{'HFU':>8}{'peak GiB':>10}{'estimated':>11}")
    for result in results:
        print(
            f"{'GradCache' if result.gradcache else 'plain':10}"
            f"{_shown(result.tokens_per_second, ',.0f'):>10}{_shown(result.mfu, '.1%'):>8}"
            f"{_shown(result.hfu, '.1%'):>8}{_shown(result.peak_gib, '.1f'):>10}"
            f"{result.estimated_gib:>11.1f}"
        )
    if any(result.tokens_per_second is None for result in results):
        print("Lines without values did not fit into the GPU's memory. Try fewer --pairs")


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    main(sys.argv[1:])
