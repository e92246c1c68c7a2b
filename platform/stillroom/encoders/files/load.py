"""Encoders on disk: make one of a base, load one, save one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

import torch

from stillroom.encoders.api_encoder import Access, RemoteEncoder
from stillroom.encoders.contract import (
    FILE,
    Attention,
    Combined,
    Contract,
    Latents,
    Pooling,
    Prompts,
    Remote,
    Terms,
    no_weights,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import CombinedEncoder
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.interface import Embedder
from stillroom.encoders.layers.backbone import (
    attention_of,
    is_decoder,
    load_backbone,
    load_head,
    load_tokenizer,
    positions_before,
)
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.lora import check_adapter, is_adapted, load_adapter, merged_adapter
from stillroom.encoders.model_names import TOKENIZERS, adapter_base, locate
from stillroom.encoders.safe_read import inside, tensors
from stillroom.errors import UserError

Build = Callable[..., Any]  # (folder, attention, dtype=…) → the backbone

ADAPTER = "adapter"

PROJECTION = "projection.safetensors"

HEAD_FILE = "head.safetensors"

POOLING = "pooling.safetensors"

PLAIN_MAX_TOKENS = 512  # of a base that says nothing itself


@overload
def load(
    folder: str | Path,
    *,
    trainable: Literal[True],
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
) -> Encoder: ...


@overload
def load(
    folder: str | Path,
    *,
    trainable: Literal[False] = False,
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
    access: Access | None = None,
) -> Embedder: ...


def load(
    folder: str | Path,
    *,
    trainable: bool = False,
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
    access: Access | None = None,
) -> Embedder:
    """An encoder of ours or of sentence-transformers, in evaluation mode; or one of several
    models, or behind an API.

    Args:
        folder: a folder, or any name that `locate` knows.
        trainable: keeps adapters apart, to train on; they are merged otherwise.
        head: brings the language model's head, as in `create`.
        trust_remote_code: as in `create`; whatever the folder says itself.
        access: to the API, where it is one. Without it none is asked: a folder of unknown origin
            shall not send texts away by itself.

    Raises:
        UserError: when it is missing, a plain model that says nothing of pooling, has no weights
            to train, or is an API without access.
    """
    located = locate(str(folder), code=trust_remote_code)
    terms = Terms.read(located) if (located / FILE).exists() else None
    if isinstance(terms, Remote | Combined):
        if trainable or head:
            raise no_weights(str(folder), terms)
        if isinstance(terms, Remote):
            if access is None:
                raise UserError(
                    str(folder),
                    f"is the API at {terms.base_url}, to which texts would go",
                    "Ask it as a recipe's teacher, or by evaluate and encode with --key-variable",
                )
            return RemoteEncoder(terms, access)
        members = [inside(located, member, located / FILE) for member in terms.members]
        return CombinedEncoder(
            terms, [_ready(one, str(one), device, trust_remote_code) for one in members]
        )
    encoder = _ready(located, str(folder), device, trust_remote_code, trainable)
    if head:
        encoder.head = load_head(_lineage(located), encoder.backbone)
        encoder.head.requires_grad_(not is_adapted(encoder.backbone))
        encoder.head.to(device)
    return encoder


def weights_of(embedder: Embedder, name: str) -> Encoder:
    """It as an encoder with weights of its own.

    Raises:
        UserError: when it is several, or an API.
    """
    if not isinstance(embedder, Encoder):
        raise no_weights(name, embedder.contract)
    return embedder


def _own(
    folder: Path,
    name: str,
    dtype: torch.dtype | None,
    *,
    attention: Attention | None = None,
    pooling: Pooling | None = None,
    latents: Latents | None = None,
    trainable: bool = False,
    code: bool = False,
    build: Build | None = None,
) -> Encoder:
    """The encoder in a folder, under its own contract but for what is asked."""
    if (folder / FILE).exists():
        contract = Contract.read(folder)
        pooling = pooling or contract.pooling
        asked = {
            "attention": attention or contract.attention,
            "pooling": pooling,
            "latents": (contract.latents or latents) if pooling == "latent" else None,
        }
        asked_for = contract.model_copy(update=asked)
        encoder = _ours(folder, asked_for, dtype, trainable, code, build)
        if contract.latents is not None and pooling == "latent":
            encoder.latent_attention = _latent_attention(folder, contract, encoder.backbone)
        return encoder
    adapts = adapter_base(folder)
    if adapts is not None and not (folder / sentence_transformers.MODULES).exists():
        encoder = _own(
            locate(adapts, code=code),
            adapts,
            dtype,
            attention=attention,
            pooling=pooling,
            latents=latents,
            code=code,
        )
        contract = encoder.contract.model_copy(update={"base": name, "space": name})
        return Encoder(
            contract,
            _tokenizer(folder, code),
            merged_adapter(encoder.backbone, folder),
            encoder.projection,
            latent_attention=encoder.latent_attention,
        )
    if (folder / sentence_transformers.MODULES).exists():
        foreign = sentence_transformers.read(folder)
    elif pooling is not None:
        foreign = sentence_transformers.Foreign(folder, pooling, True, True, Prompts(), None, None)
    else:
        raise UserError(
            name,
            "is a plain model, which does not say how its states become a vector",
            "Set pooling (mean, weighted_mean, last, cls or latent) in the recipe",
        )
    if build is None:
        backbone = _backbone(foreign.weights, attention, dtype or torch.float32, code)
    else:
        backbone = build(foreign.weights, attention, dtype=dtype or torch.float32)
    tokenizer = _tokenizer(foreign.weights, code)
    longest = _longest(backbone, tokenizer)
    projection = _projection(foreign.projection)
    contract = Contract(
        base=name,
        architecture="decoder" if is_decoder(backbone.config) else "encoder",
        attention=attention or attention_of(backbone),
        pooling=pooling or foreign.pooling,
        latents=latents if pooling == "latent" else None,
        append_eos=False,
        prompts=foreign.prompts,
        pool_prompt=foreign.pool_prompt,
        max_tokens=foreign.max_tokens or min(PLAIN_MAX_TOKENS, longest),
        dims=(_hidden(backbone) if projection is None else projection.out_features,),
        # A vector of any length is compared by cosine all the same.
        normalise=True,
        space=name,
    )
    return Encoder(contract, tokenizer, backbone, projection)


def _ready(folder: Path, name: str, device: str, code: bool, trainable: bool = False) -> Encoder:
    encoder = _own(folder, name, None, trainable=trainable, code=code)
    if encoder.latent_attention is not None and not trainable:
        encoder.latent_attention.to(encoder.backbone.dtype)
    return encoder.to(device).train(trainable)


def _backbone(folder: Path, attention: Attention | None, dtype: torch.dtype, code: bool) -> Any:
    """The transformer in a folder of any kind, its adapters merged."""
    if (folder / FILE).exists():
        return _ours(folder, Contract.read(folder), dtype, False, code).backbone
    weights = _weights(folder)
    adapts = adapter_base(weights)
    if adapts is None:
        return load_backbone(weights, attention, dtype=dtype, trust_remote_code=code)
    base = _backbone(locate(adapts, code=code), attention, dtype, code)
    return merged_adapter(base, weights)


def _tokenizer(folder: Path, code: bool) -> Any:
    """A folder's, or where an adapter came without one, its base's."""
    if not any((folder / file).is_file() for file in TOKENIZERS):
        base = Contract.read(folder).base if (folder / FILE).exists() else adapter_base(folder)
        if base is not None:
            return _tokenizer(_weights(locate(base, code=code)), code)
    return load_tokenizer(folder, trust_remote_code=code)


def _ours(
    folder: Path,
    contract: Contract,
    dtype: torch.dtype | None,
    trainable: bool,
    code: bool,
    build: Build | None = None,
) -> Encoder:
    precision = getattr(torch, contract.precision)
    adapter = folder / ADAPTER
    projection = None
    if adapter.is_dir():
        check_adapter(adapter)  # before the base is read, which may be large
        # Adapters upon adapters: the lower ones are merged first.
        base = locate(contract.base, code=code)
        frozen = _backbone(base, contract.attention, precision, code)
        backbone = load_adapter(frozen, adapter, trainable=trainable)
    else:
        # Training keeps float32 weights and computes in the contract's precision. To serve, a
        # decoder's are rounded, for their size; a small encoder's would lose more than they save.
        rounded = contract.architecture == "decoder" and not trainable
        dtype = dtype or (precision if rounded else torch.float32)
        build = build or functools.partial(load_backbone, trust_remote_code=code)
        backbone = build(folder, contract.attention, dtype=dtype)
    if (folder / PROJECTION).exists():
        projection = _projection(tensors(folder / PROJECTION)["weight"])
    tokenizer = load_tokenizer(folder, trust_remote_code=code)
    return Encoder(contract, tokenizer, backbone, projection)


def _latent_attention(folder: Path, contract: Contract, backbone: Any) -> LatentAttention:
    assert contract.latents is not None
    module = LatentAttention(_hidden(backbone), contract.latents)
    module.load_state_dict(tensors(folder / POOLING))
    return module


def _lineage(folder: Path) -> list[Path]:
    """A folder, the folder of the base that it was made of, and so on."""
    own = (folder / FILE).exists()
    base = Contract.read(folder).base if own else adapter_base(folder)
    return [folder] if base is None else [folder, *_lineage(locate(base))]


def _weights(folder: Path) -> Path:
    """Where the transformer lies in a folder that is not ours."""
    if (folder / sentence_transformers.MODULES).exists():
        return sentence_transformers.read(folder).weights
    return folder


def _projection(weight: torch.Tensor | None) -> torch.nn.Linear | None:
    if weight is None:
        return None
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data.copy_(weight)
    return linear


def _hidden(backbone: Any) -> int:
    return int(backbone.config.hidden_size)


def _longest(backbone: Any, tokenizer: Any) -> int:
    """The most ids that a model reads."""
    positions = getattr(backbone.config, "max_position_embeddings", tokenizer.model_max_length)
    return int(min(positions - positions_before(backbone), tokenizer.model_max_length))
