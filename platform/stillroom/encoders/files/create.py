"""Makes an encoder from a base: another contract or size, an adapter, a projection, a head."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from stillroom.encoders.contract import (
    CombineMethod,
    Contract,
    LatentAttentionSizes,
    Precision,
    ProjectionLayer,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder, ensemble_contract
from stillroom.encoders.files.folder import ReadOptions, base_folders, read_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.encoders.files.pretrained import load_head
from stillroom.encoders.layers.backbone import hidden_size, max_input_tokens
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.local_maps import LocalMaps
from stillroom.encoders.layers.lora import LoraOptions, add_lora
from stillroom.encoders.layers.projection import Projection, linear_projection
from stillroom.encoders.layers.resize import keep_layers, random_backbone
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.prompt_names import replace_prompts
from stillroom.encoders.tokens.prune import (
    count_tokens,
    ids_fixed_by_positions,
    prune_embeddings,
    prune_vocabulary,
)
from stillroom.encoders.tokens.special_tokens import append_eos
from stillroom.errors import UserError


def create_encoder(
    base: str,
    *,
    space: str,
    options: ContractOptions | None = None,
    resize: Resize | None = None,
    lora: LoraOptions | None = None,
    projection_dims: int | None = None,
    head: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Encoder:
    """A new encoder made from a base, for training.

    Args:
        base: as `locate_model` names it: an encoder of ours or of sentence-transformers, a plain
            Hugging Face model, for which `options` must set pooling, or a LoRA adapter of PEFT,
            which is merged.
        space: id of the vector space that it encodes into.
        lora: adds an adapter, and freezes the base's weights; None trains every weight.
        projection_dims: adds a linear map to this many dims.
        head: loads the language model's head, to train on predicted tokens.
        seed: of all weights that start random.
        trust_remote_code: runs Python code that comes with the base.

    Raises:
        UserError: when the base is missing, or cannot be changed as requested.
    """
    options, resize = options or ContractOptions(), resize or Resize()
    precision = fastest_precision() if options.precision == "auto" else options.precision
    folder = locate_model(base, include_code=trust_remote_code)
    build = None
    if resize.size is not None:
        build = functools.partial(
            random_backbone, size=resize.size, max_tokens=options.max_tokens, seed=seed
        )
    encoder = read_encoder(
        folder,
        base,
        ReadOptions(
            attention=options.attention,
            pooling=options.pooling,
            latents=LatentAttentionSizes(**options.latents or {}),
            # Frozen weights need no float32 copy; without one, trained weights would lose small
            # updates.
            dtype=getattr(torch, precision) if lora is not None else torch.float32,
            trust_remote_code=trust_remote_code,
            build_backbone=build,
        ),
    )
    if options.append_eos:
        encoder.tokenizer = append_eos(encoder.tokenizer)
    contract = _changed(encoder.contract, options, precision, base=base, space=space)
    _resize(encoder, contract, resize, options.max_tokens)
    if resize.size is not None:
        contract = contract.model_copy(
            update={"dims": (hidden_size(encoder.backbone),), "projection": ()}
        )
    if options.layer_norm:
        encoder.projection = _with_layer_norm(encoder)
        contract = contract.model_copy(update={"projection": encoder.projection.spec})
    if options.dims is not None:
        contract = contract.model_copy(update={"dims": _checked_dims(options.dims, contract)})
    if head:
        encoder.head = load_head(base_folders(folder), encoder.backbone)
        encoder.head.requires_grad_(lora is None)
    return _with_new_weights(encoder, contract, lora, projection_dims, seed)


def combine_encoders(
    members: Sequence[Encoder | LibraryEncoder], method: CombineMethod, *, space: str
) -> EnsembleEncoder:
    """Several encoders as one.

    Raises:
        UserError: when their vectors cannot be combined by that method.
    """
    return EnsembleEncoder(ensemble_contract(members, method, space=space), members)


def _changed(
    contract: Contract, options: ContractOptions, precision: str, *, base: str, space: str
) -> Contract:
    """The contract with the fields that the options set, except those that `read_encoder` sets and
    those of the vectors' layers and sizes."""
    comparison = contract.comparison.changed_to(options.similarity)
    changes: dict[str, Any] = {
        **comparison._asdict(),
        **replace_prompts(contract, options.prompts, options.prompt),
        "echo": options.echo,
        "pool_prompt": options.pool_prompt,
        "max_tokens": options.max_tokens,
        "precision": precision,
        "base": base,
        "space": space,
    }
    return contract.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _with_layer_norm(encoder: Encoder) -> Projection:
    """The encoder's layers after pooling, and a LayerNorm that only standardises at first."""
    before = encoder.projection
    assert not isinstance(before, LocalMaps), "those are of encoders that are never saved"
    width = hidden_size(encoder.backbone)
    layers = () if before is None else before.spec
    last = before.out_dims if before is not None else width
    projection = Projection(width, [*layers, ProjectionLayer(kind="layer_norm", dims=last)])
    if before is not None:
        # The new layer keeps torch's weights of 1 and biases of 0.
        projection.load_state_dict(before.state_dict(), strict=False)
    return projection


def _checked_dims(dims: Sequence[int], contract: Contract) -> tuple[int, ...]:
    full = contract.dims[0]
    if not dims or list(dims) != sorted(set(dims), reverse=True) or dims[0] > full:
        raise UserError(
            "dims",
            f"{', '.join(map(str, dims))} are no sizes that vectors of {full} dims are cut to",
            f"List distinct sizes of at most {full}, the largest first",
        )
    return tuple(dims)


def _resize(encoder: Encoder, contract: Contract, resize: Resize, max_tokens: int | None) -> None:
    """Changes layers and vocabulary in place; of random weights, drops the base's projection."""
    backbone = encoder.backbone
    if resize.size is not None:
        encoder.projection = None  # it maps the base's states
        if max_tokens is not None:
            encoder.tokenizer.model_max_length = max_tokens
    longest = max_input_tokens(backbone, encoder.tokenizer)
    if max_tokens is not None and max_tokens > longest:
        raise UserError(
            "max_tokens", f"{max_tokens} is more than {contract.base} reads", f"At most {longest}"
        )
    if resize.layers is not None:
        keep_layers(backbone, resize.layers)
    if resize.vocabulary_size is not None:
        prompts = (contract.prompts.query, contract.prompts.passage)
        prompt_ids = [i for prompt in prompts for i in encoder.tokenizer(prompt)["input_ids"]]
        counts = resize.token_counts
        if counts is None:
            counts = count_tokens(encoder.tokenizer, resize.texts)
        pruned = prune_vocabulary(
            encoder.tokenizer,
            resize.vocabulary_size,
            counts,
            needed=[*ids_fixed_by_positions(backbone), *prompt_ids],
        )
        prune_embeddings(backbone, pruned)
        encoder.tokenizer = pruned.tokenizer


def _with_new_weights(
    encoder: Encoder,
    contract: Contract,
    lora: LoraOptions | None,
    projection_dims: int | None,
    seed: int,
) -> Encoder:
    """The encoder with the projection, adapter and latent attention that it lacks, drawn from the
    seed."""
    backbone, width = encoder.backbone, hidden_size(encoder.backbone)
    projection, latent_attention = encoder.projection, encoder.latent_attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if projection_dims is not None:
            projection = linear_projection(width, projection_dims)
            # Cosines survive an orthogonal map: the student starts as good as its base.
            torch.nn.init.orthogonal_(projection.linear.weight)
            contract = contract.model_copy(
                update={"dims": (projection_dims,), "projection": projection.spec}
            )
        if lora is not None:
            backbone = add_lora(backbone, lora)
        if contract.latents is not None and latent_attention is None:
            latent_attention = LatentAttention(width, contract.latents)
    return Encoder(
        contract, encoder.tokenizer, backbone, projection, encoder.head, latent_attention
    )


def fastest_precision() -> Precision:
    """The precision in which this machine multiplies fastest without losing range."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(False) else "float32"
    # A CPU that only emulates bfloat16 is faster in float32. Older torch cannot report it.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"
