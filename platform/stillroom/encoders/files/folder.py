"""Reads the encoder in a folder: ours, a PEFT adapter, sentence-transformers' or a plain model."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stillroom.encoders.contract import (
    CONTRACT_FILE,
    Attention,
    BaseContract,
    Comparison,
    Contract,
    LatentAttentionSizes,
    Pooling,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.files.pretrained import fit_tokenizer, load_backbone, load_tokenizer
from stillroom.encoders.files.sentence_transformers import (
    SentenceTransformersModel,
    transformer_folder,
)
from stillroom.encoders.layers.attention import detect_attention
from stillroom.encoders.layers.backbone import (
    hidden_size,
    is_decoder,
    max_input_tokens,
    position_rows,
)
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.lora import check_adapter, load_adapter, merge_adapter
from stillroom.encoders.layers.projection import Projection
from stillroom.encoders.model_names import TOKENIZER_FILES, adapter_base, locate_model
from stillroom.encoders.safe_read import read_tensors
from stillroom.encoders.tokens.special_tokens import lower_case_first
from stillroom.errors import UserError

logger = logging.getLogger(__name__)

# Optional files of our folders, besides the transformer and contract.json.
ADAPTER_FOLDER = "adapter"

PROJECTION_FILE = "projection.safetensors"
HEAD_FILE = "head.safetensors"
LATENT_ATTENTION_FILE = "pooling.safetensors"
DEFAULT_MAX_TOKENS = 512  # of a plain model, which defines no limit


@dataclass(frozen=True)
class ReadOptions:
    """How to read an encoder; None keeps the folder's setting.

    Attributes:
        dtype: of the weights; None: float32 to train, and of decoders the contract's precision.
        trainable: keeps an adapter separate, to train it further; otherwise it is merged.
        build_backbone: (folder, attention, dtype=…) → the transformer, instead of loading it.
    """

    attention: Attention | None = None
    pooling: Pooling | None = None
    latents: LatentAttentionSizes | None = None
    dtype: torch.dtype | None = None
    trainable: bool = False
    trust_remote_code: bool = False
    build_backbone: Callable[..., Any] | None = None


def read_encoder(folder: Path, name: str, options: ReadOptions) -> Encoder:
    """The encoder in a folder, with the contract that the folder gives and the options change.

    Args:
        name: the base and the space of a model that has no contract.

    Raises:
        UserError: when it cannot be loaded, nothing defines the pooling, or the tokenizer is
            another model's.
    """
    if (folder / CONTRACT_FILE).exists():
        return _with_own_contract(folder, options)
    if (folder / sentence_transformers.MODULES_FILE).exists():
        return _without_contract(sentence_transformers.read_modules(folder), name, options)
    if (base := adapter_base(folder)) is not None:
        return _adapter_on_base(folder, name, base, options)
    if options.pooling is None:
        raise UserError(
            name,
            "is a plain model, which does not say how its states become a vector",
            "Set pooling (mean, weighted_mean, last, cls or latent) in the recipe",
        )
    plain = SentenceTransformersModel(folder, options.pooling, is_complete=False)
    return _without_contract(plain, name, options)


def read_comparison(folder: Path) -> Comparison:
    """How the vectors of a folder's encoder are compared, by cosine where it does not say; reads no
    weights."""
    if (folder / CONTRACT_FILE).exists():
        return BaseContract.read(folder).comparison
    if (folder / sentence_transformers.MODULES_FILE).exists():
        return sentence_transformers.read_comparison(folder)
    base = adapter_base(folder)
    return Comparison("cosine", True) if base is None else read_comparison(locate_model(base))


def base_folders(folder: Path) -> list[Path]:
    """The folder, the folder of its base, of the base's base, and so on."""
    has_contract = (folder / CONTRACT_FILE).exists()
    base = Contract.read(folder).base if has_contract else adapter_base(folder)
    return [folder] if base is None else [folder, *base_folders(locate_model(base))]


def _with_own_contract(folder: Path, options: ReadOptions) -> Encoder:
    contract = Contract.read(folder)
    pooling = options.pooling or contract.pooling
    changes = {
        "attention": options.attention or contract.attention,
        "pooling": pooling,
        "latents": (contract.latents or options.latents) if pooling == "latent" else None,
    }
    encoder = _load(folder, contract.model_copy(update=changes), options)
    if contract.latents is not None and pooling == "latent":
        encoder.latent_attention = LatentAttention(hidden_size(encoder.backbone), contract.latents)
        encoder.latent_attention.load_state_dict(read_tensors(folder / LATENT_ATTENTION_FILE))
    return encoder


def _load(folder: Path, contract: Contract, options: ReadOptions) -> Encoder:
    """Transformer, projection and tokenizer of a folder of ours, under that contract."""
    code = options.trust_remote_code
    precision = getattr(torch, contract.precision)
    adapter = folder / ADAPTER_FOLDER
    if adapter.is_dir():
        check_adapter(adapter)  # before the base is read, which may be large
        # The base may have adapters itself: those are merged first.
        base = locate_model(contract.base, include_code=code)
        frozen = _backbone(base, contract.attention, precision, code)
        backbone = load_adapter(frozen, adapter, trainable=options.trainable)
    else:
        # Training keeps float32 weights and computes in the contract's precision. To serve, a
        # decoder's are rounded, for their size; a small encoder's would lose more than they save.
        rounded = contract.architecture == "decoder" and not options.trainable
        dtype = options.dtype or (precision if rounded else torch.float32)
        build = options.build_backbone or functools.partial(load_backbone, trust_remote_code=code)
        backbone = build(folder, contract.attention, dtype=dtype)
    projection = None
    if contract.projection:
        projection = Projection(hidden_size(backbone), contract.projection)
        projection.load_state_dict(read_tensors(folder / PROJECTION_FILE))
    tokenizer = load_tokenizer(folder, trust_remote_code=code)
    return Encoder(contract, fit_tokenizer(tokenizer, backbone, folder), backbone, projection)


def _adapter_on_base(folder: Path, name: str, base: str, options: ReadOptions) -> Encoder:
    """A PEFT adapter that others trained, merged into its base's encoder."""
    code = options.trust_remote_code
    encoder = read_encoder(
        locate_model(base, include_code=code),
        base,
        replace(options, trainable=False, build_backbone=None),
    )
    backbone = merge_adapter(encoder.backbone, folder)
    return Encoder(
        encoder.contract.model_copy(update={"base": name, "space": name}),
        fit_tokenizer(folder_tokenizer(folder, code), backbone, folder),
        backbone,
        encoder.projection,
        latent_attention=encoder.latent_attention,
    )


def _without_contract(model: SentenceTransformersModel, name: str, options: ReadOptions) -> Encoder:
    """A model that sentence-transformers' files, or the options alone, describe."""
    dtype = options.dtype or torch.float32
    if options.build_backbone is None:
        backbone = _backbone(model.weights, options.attention, dtype, options.trust_remote_code)
    else:
        backbone = options.build_backbone(model.weights, options.attention, dtype=dtype)
    tokenizer = fit_tokenizer(
        folder_tokenizer(model.weights, options.trust_remote_code), backbone, model.weights
    )
    if model.lower_case:
        tokenizer = lower_case_first(tokenizer)
    projection = model.projection
    width = hidden_size(backbone) if projection is None else projection.out_dims
    contract = Contract(
        base=name,
        architecture="decoder" if is_decoder(backbone.config) else "encoder",
        attention=options.attention or detect_attention(backbone),
        pooling=options.pooling or model.pooling,
        latents=options.latents if options.pooling == "latent" else None,
        projection=() if projection is None else projection.spec,
        prompts=model.prompts,
        named_prompts=model.named_prompts,
        pool_prompt=model.pool_prompt,
        max_tokens=_max_tokens(model, backbone, tokenizer),
        dims=(min(width, model.truncate_dim or width),),
        normalise=model.normalise,
        similarity=model.similarity,
        space=name,
    )
    return Encoder(contract, tokenizer, backbone, projection)


def _max_tokens(model: SentenceTransformersModel, backbone: Any, tokenizer: Any) -> int:
    """The folder's limit; without one, all that the model reads, or of a plain model some."""
    longest = max_input_tokens(backbone, tokenizer)
    if model.max_tokens is None:
        return longest if model.is_complete else min(DEFAULT_MAX_TOKENS, longest)
    rows = position_rows(backbone)
    if rows is not None and model.max_tokens > rows:
        logger.warning(
            "%s: max_seq_length is %d, and the model has %d positions: longer texts are cut there",
            model.weights, model.max_tokens, rows,
        )  # fmt: skip
        return rows
    return model.max_tokens


def _backbone(folder: Path, attention: Attention | None, dtype: torch.dtype, code: bool) -> Any:
    """The transformer in a folder of any kind, its adapters merged."""
    if (folder / CONTRACT_FILE).exists():
        options = ReadOptions(dtype=dtype, trust_remote_code=code)
        return _load(folder, Contract.read(folder), options).backbone
    weights = transformer_folder(folder)
    base = adapter_base(weights)
    if base is None:
        return load_backbone(weights, attention, dtype=dtype, trust_remote_code=code)
    below = _backbone(locate_model(base, include_code=code), attention, dtype, code)
    return merge_adapter(below, weights)


def folder_tokenizer(folder: Path, code: bool) -> Any:
    """The folder's tokenizer or, of an adapter that came without one, its base's."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        has_contract = (folder / CONTRACT_FILE).exists()
        base = Contract.read(folder).base if has_contract else adapter_base(folder)
        if base is not None:
            return folder_tokenizer(transformer_folder(locate_model(base, include_code=code)), code)
    return load_tokenizer(folder, trust_remote_code=code)
