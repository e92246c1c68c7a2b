"""Loads an encoder by its name or folder."""

from pathlib import Path
from typing import Literal, overload

from stillroom.encoders.api_encoder import ApiAccess, ApiEncoder
from stillroom.encoders.contract import (
    CONTRACT_FILE,
    ApiContract,
    BaseContract,
    EnsembleContract,
    no_weights_error,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder
from stillroom.encoders.files.folder import ReadOptions, base_folders, read_encoder
from stillroom.encoders.files.pretrained import load_head
from stillroom.encoders.interface import Embedder
from stillroom.encoders.layers.lora import has_adapter
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.safe_read import path_inside
from stillroom.errors import UserError


@overload
def load_encoder(
    folder: str | Path,
    *,
    trainable: Literal[True],
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
) -> Encoder: ...


@overload
def load_encoder(
    folder: str | Path,
    *,
    trainable: Literal[False] = False,
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
    access: ApiAccess | None = None,
) -> Embedder: ...


def load_encoder(
    folder: str | Path,
    *,
    trainable: bool = False,
    device: str = "cpu",
    head: bool = False,
    trust_remote_code: bool = False,
    access: ApiAccess | None = None,
) -> Embedder:
    """An encoder of ours or of sentence-transformers, an ensemble, or an API's; in evaluation mode
    unless it is trainable.

    Args:
        folder: a folder, or any name that `locate_model` knows.
        trainable: keeps adapters separate, to train on; otherwise they are merged.
        head: loads the language model's head, as in `create_encoder`.
        trust_remote_code: runs Python code that comes with the model. Nothing in the folder can
            enable that.
        access: to an API. Without it no API is called: a folder of unknown origin must not send
            texts away.

    Raises:
        UserError: when it is missing, a plain model that does not define pooling, has no weights
            to train, or is an API without access.
    """
    located = locate_model(str(folder), include_code=trust_remote_code)
    has_contract = (located / CONTRACT_FILE).exists()
    contract = BaseContract.read(located) if has_contract else None
    if isinstance(contract, ApiContract | EnsembleContract) and (trainable or head):
        raise no_weights_error(str(folder), contract)
    if isinstance(contract, ApiContract):
        if access is None:
            raise UserError(
                str(folder),
                f"is the API at {contract.base_url}, to which texts would go",
                "Use it as a recipe's teacher, or by evaluate and encode with --api-key-env",
            )
        return ApiEncoder(contract, access)
    if isinstance(contract, EnsembleContract):
        members = [
            path_inside(located, member, located / CONTRACT_FILE) for member in contract.members
        ]
        return EnsembleEncoder(
            contract, [_load_one(path, str(path), device, trust_remote_code) for path in members]
        )
    encoder = _load_one(located, str(folder), device, trust_remote_code, trainable)
    if head:
        encoder.head = load_head(base_folders(located), encoder.backbone)
        encoder.head.requires_grad_(not has_adapter(encoder.backbone))
        encoder.head.to(device)
    return encoder


def require_weights(embedder: Embedder, name: str) -> Encoder:
    """The embedder, if it is a single model with weights.

    Raises:
        UserError: when it is an ensemble, an export or an API.
    """
    if not isinstance(embedder, Encoder):
        raise no_weights_error(name, embedder.contract)
    return embedder


def _load_one(
    folder: Path, name: str, device: str, trust_remote_code: bool, trainable: bool = False
) -> Encoder:
    options = ReadOptions(trainable=trainable, trust_remote_code=trust_remote_code)
    encoder = read_encoder(folder, name, options)
    if encoder.latent_attention is not None and not trainable:
        encoder.latent_attention.to(encoder.backbone.dtype)
    return encoder.to(device).train(trainable)
