"""TODO docstring: encoders/files/create.py."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from stillroom.encoders.contract import (
    Attention,
    Combine,
    Latents,
    Pooling,
    Precision,
    Prompts,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import CombinedEncoder, combination
from stillroom.encoders.files.load import Build, _hidden, _lineage, _longest, _own
from stillroom.encoders.layers.backbone import (
    load_head,
)
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.lora import (
    add_lora,
)
from stillroom.encoders.layers.resize import cut, random_backbone
from stillroom.encoders.model_names import locate
from stillroom.encoders.tokens.prune import count, cut_embeddings, ids_below_positions, narrow
from stillroom.errors import UserError


def create(
    base: str,
    *,
    space: str,
    attention: Attention | None = None,
    pooling: Pooling | None = None,
    latents: Mapping[str, Any] | None = None,
    append_eos: bool | None = None,
    echo: bool | None = None,
    prompts: Mapping[str, str] | None = None,
    pool_prompt: bool | None = None,
    max_tokens: int | None = None,
    precision: Precision | str = "auto",
    layers: Sequence[int] | None = None,
    size: Mapping[str, int] | None = None,
    vocabulary: int | None = None,
    texts: Iterable[str] = (),
    lora: Mapping[str, Any] | None = None,
    projection_dims: int | None = None,
    head: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Encoder:
    """An encoder made of a base; what is None stays as the base's own contract has it.

    Args:
        base: an encoder's folder of ours, one of sentence-transformers, a plain Hugging Face
            folder, or a LoRA adapter of PEFT, which is merged, as `locate` names it. Of a plain
            one pooling must be said.
        latents: count, heads and head_dims of latent attention, where pooling is latent and the
            base has none of its own.
        precision: "auto" is bfloat16 where the machine computes in it, else float32.
        layers: those of the base to keep, in order.
        size: of random weights in place of the base's; see `sizes.random_backbone`.
        vocabulary: the most tokens to keep, the most frequent in `texts`; see `vocabulary.narrow`.
        lora: rank, alpha, dropout and targets; the base's weights are then frozen.
        projection_dims: adds a linear map to as many dims.
        head: brings the language model's head, to train on predicted tokens.
        seed: of every weight that begins at random.
        trust_remote_code: runs the Python that the base brings with it.

    Raises:
        UserError: when the base is missing or cannot be what is asked of it.
    """
    resolved = _precision() if precision == "auto" else precision
    # Weights that stay frozen need no float32 copy; trained ones lose small updates without.
    dtype = getattr(torch, resolved) if lora is not None else torch.float32
    folder = locate(base, code=trust_remote_code)
    build: Build | None = None
    if size is not None:
        build = functools.partial(random_backbone, size=size, max_tokens=max_tokens, seed=seed)
    encoder = _own(
        folder,
        base,
        dtype,
        attention=attention,
        pooling=pooling,
        latents=Latents(**latents or {}),
        code=trust_remote_code,
        build=build,
    )
    asked: dict[str, Any] = {
        "append_eos": append_eos,
        "echo": echo,
        "prompts": None if prompts is None else Prompts(**prompts),
        "pool_prompt": pool_prompt,
        "max_tokens": max_tokens,
        "precision": resolved,
        "base": base,
        "space": space,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    backbone = encoder.backbone
    if size is not None:
        encoder.projection = None  # of the base's states
        changes["dims"] = (_hidden(backbone),)
        if max_tokens is not None:
            encoder.tokenizer.model_max_length = max_tokens
    most = _longest(backbone, encoder.tokenizer)
    if max_tokens is not None and max_tokens > most:
        raise UserError("max_tokens", f"{max_tokens} is more than {base} reads", f"At most {most}")
    if layers is not None:
        cut(backbone, layers)
    if vocabulary is not None:
        spoken = changes.get("prompts", encoder.contract.prompts)
        needed = [*ids_below_positions(backbone), *_spoken(encoder.tokenizer, spoken)]
        counts = count(encoder.tokenizer, texts)
        narrowed = narrow(encoder.tokenizer, vocabulary, counts, needed=needed)
        cut_embeddings(backbone, narrowed)
        encoder.tokenizer = narrowed.tokenizer
    predicts = load_head(_lineage(folder), backbone) if head else None
    if predicts is not None:
        predicts.requires_grad_(lora is None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        projection = encoder.projection
        if projection_dims is not None:
            projection = torch.nn.Linear(_hidden(backbone), projection_dims, bias=False)
            # Cosines survive an orthogonal map: the student starts as good as its base.
            torch.nn.init.orthogonal_(projection.weight)
            changes["dims"] = (projection_dims,)
        if lora is not None:
            backbone = add_lora(backbone, **lora)
        latent_attention = encoder.latent_attention
        if encoder.contract.latents is not None and latent_attention is None:
            latent_attention = LatentAttention(_hidden(backbone), encoder.contract.latents)
    contract = encoder.contract.model_copy(update=changes)
    return Encoder(contract, encoder.tokenizer, backbone, projection, predicts, latent_attention)


def combine(members: Sequence[Encoder], way: Combine, *, space: str) -> CombinedEncoder:
    """Encoders as one, to be saved with all of their weights.

    Raises:
        UserError: when their vectors cannot be combined so.
    """
    return CombinedEncoder(combination(members, way, space=space), members)


def _spoken(tokenizer: Any, prompts: Prompts) -> list[int]:
    """Ids of the prompts."""
    return [
        i for prompt in (prompts.query, prompts.passage) for i in tokenizer(prompt)["input_ids"]
    ]


def _precision() -> Precision:
    """What the machine multiplies in fastest without losing range."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(False) else "float32"
    # Where a CPU only emulates it, float32 is faster. Older torch cannot tell.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bfloat16" if native else "float32"
