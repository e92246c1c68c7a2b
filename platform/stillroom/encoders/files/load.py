"""Loads an encoder by its name or folder."""

import logging
from pathlib import Path
from typing import Literal, overload

from stillroom.encoders.api_encoder import ApiAccess, ApiEncoder
from stillroom.encoders.contract import (
    CONTRACT_FILE,
    ApiContract,
    BaseContract,
    EnsembleContract,
    LibraryContract,
    Pooling,
    no_weights_error,
)
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder, ensemble_contract
from stillroom.encoders.files.folder import ReadOptions, base_folders, read_encoder
from stillroom.encoders.files.library import library_reason, open_library_encoder
from stillroom.encoders.files.pretrained import load_head
from stillroom.encoders.files.sentence_transformers import MODULES_FILE
from stillroom.encoders.interface import Embedder
from stillroom.encoders.layers.lora import has_adapter
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.safe_read import path_inside
from stillroom.errors import UserError

logger = logging.getLogger(__name__)


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
    pooling: Pooling | None = None,
    trust_remote_code: bool = False,
    access: ApiAccess | None = None,
) -> Embedder: ...


def load_encoder(
    folder: str | Path,
    *,
    trainable: bool = False,
    device: str = "cpu",
    head: bool = False,
    pooling: Pooling | None = None,
    trust_remote_code: bool = False,
    access: ApiAccess | None = None,
) -> Embedder:
    """An encoder of ours or of sentence-transformers, an ensemble, or an API's; in evaluation mode
    unless it is trainable.

    What only sentence-transformers can run becomes a `LibraryEncoder`.

    Args:
        folder: a folder, or any name that `locate_model` knows.
        trainable: keeps adapters separate, to train on; otherwise they are merged.
        head: loads the language model's head, as in `create_encoder`.
        pooling: of a plain model, to encode with.
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
    given = isinstance(contract, ApiContract | EnsembleContract | LibraryContract)
    if contract is not None and given and (trainable or head):
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
        ensemble = EnsembleEncoder(
            contract, [_load_one(path, str(path), device, trust_remote_code) for path in members]
        )
        _check_members(ensemble, located)
        return ensemble
    if not trainable and not head:
        return _load_one(located, str(folder), device, trust_remote_code, pooling)
    encoder = _read(located, str(folder), device, trust_remote_code, trainable)
    if head:
        encoder.head = load_head(base_folders(located), encoder.backbone)
        encoder.head.requires_grad_(not has_adapter(encoder.backbone))
        encoder.head.to(device)
    return encoder


def _check_members(ensemble: EnsembleEncoder, folder: Path) -> None:
    """Raises UserError for members that do not make the vectors that the contract promises."""
    contract = ensemble.contract
    made = ensemble_contract(ensemble.members, contract.combine, space=contract.space)
    if made.dims[0] != contract.dims[0] or made.max_tokens < contract.max_tokens:
        raise UserError(
            str(folder / CONTRACT_FILE),
            f"says {contract.dims[0]} dims and {contract.max_tokens} tokens, and its members give "
            f"{made.dims[0]} and {made.max_tokens}",
            "Restore the members that it was made of",
        )


def require_weights(embedder: Embedder, name: str) -> Encoder:
    """The embedder, if it is a single model with weights.

    Raises:
        UserError: when it is an ensemble, an export or an API.
    """
    if not isinstance(embedder, Encoder):
        raise no_weights_error(name, embedder.contract)
    return embedder


def _load_one(
    folder: Path,
    name: str,
    device: str,
    trust_remote_code: bool,
    pooling: Pooling | None = None,
) -> Encoder | LibraryEncoder:
    """The single model in a folder, to encode with."""
    if (folder / CONTRACT_FILE).exists():
        contract = BaseContract.read(folder)
        if isinstance(contract, LibraryContract):
            whole = (folder / MODULES_FILE).exists()  # as in a release of models from elsewhere
            return open_library_encoder(
                folder if whole else locate_model(contract.base, include_code=trust_remote_code),
                contract.base,
                contract=contract,
                trust_remote_code=trust_remote_code,
                device=device,
            )
    elif (reason := library_reason(folder)) is not None:
        logger.info("%s: sentence-transformers runs this model, because it %s", name, reason)
        return open_library_encoder(
            folder, name, trust_remote_code=trust_remote_code, device=device
        )
    return _read(folder, name, device, trust_remote_code, pooling=pooling)


def _read(
    folder: Path,
    name: str,
    device: str,
    trust_remote_code: bool,
    trainable: bool = False,
    pooling: Pooling | None = None,
) -> Encoder:
    """The model in a folder, as our own forward runs it."""
    options = ReadOptions(pooling=pooling, trainable=trainable, trust_remote_code=trust_remote_code)
    encoder = read_encoder(folder, name, options)
    if encoder.latent_attention is not None and not trainable:
        encoder.latent_attention.to(encoder.backbone.dtype)
    return encoder.to(device).train(trainable)
