"""Opens a model of any kind that can be served: loads it once, to know that it can encode."""

import json
from pathlib import Path

from stillroom.encoders.contract import CONTRACT_FILE, BaseContract, Pooling
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.runtimes import EXPORT_FILE, ExportedEncoder, is_exported
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.sentence_transformers import MODULES_FILE
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.model_names import (
    adapter_base,
    find_model,
    locate_model,
    model_fingerprint,
)
from stillroom.encoders.proof import ProbedEncoder, probe, prove
from stillroom.errors import UserError
from stillroom.release.reader import is_release
from stillroom.release.single_model import SingleModel
from stillroom.storage.artifacts import Artifact, Store


def open_single_model(
    name: str,
    model: str,
    root: str,
    *,
    pooling: Pooling | None = None,
    trust_remote_code: bool = False,
) -> SingleModel:
    """A model to serve as it stands.

    Args:
        name: by which clients ask for it.
        model: as `stillroom evaluate` takes it.
        pooling: of a plain model, which does not say it itself.

    Raises:
        UserError: as `open_encoder`, and for a published model with other vectors here than in
            sentence-transformers.
    """
    ref, source = locate_everywhere(model, root)
    folder = locate_model(source, include_code=trust_remote_code)
    fingerprint = model_fingerprint(source)
    encoder = open_encoder(source, pooling=pooling, trust_remote_code=trust_remote_code)
    contract, probed = encoder.contract, probe_published(encoder, folder, model)
    del encoder  # frees its weights: the proof loads them by the library
    if probed is not None:
        prove(probed, folder, trust_remote_code=trust_remote_code)
    format = export_format(folder)
    return SingleModel(
        name=name,
        ref=ref,
        root=root,
        contracts={"model": with_portable_space(contract, source, fingerprint)},
        folders={"model": ""},
        exports={"model": {} if format is None else {format: ""}},
        created=int(folder.stat().st_mtime),
        api_urls={},
        fingerprint=fingerprint,
        pooling=pooling,
    )


def locate_everywhere(model: str, root: str) -> tuple[str, str]:
    """A model's name on every machine, and as `load_encoder` takes it on this one.

    Raises:
        UserError: for a release, and an artifact that is missing.
    """
    if is_release(model):
        raise UserError(model, "is a release, not a model", "Name it as a release, or its encoder")
    found = find_model(model, Store(root))
    if isinstance(found, Artifact):
        return found.ref, str(found.path)
    path = Path(model).expanduser()
    name = str(path.resolve()) if path.is_dir() else model
    return name, name


def probe_published(encoder: TokenEncoder, folder: Path, model: str) -> ProbedEncoder | None:
    """Vectors to prove by sentence-transformers, of a model that it published; else None."""
    published = (folder / MODULES_FILE).exists() and not (folder / CONTRACT_FILE).exists()
    return probe(encoder, model) if published and isinstance(encoder, Encoder) else None


def with_portable_space(contract: BaseContract, source: str, fingerprint: str) -> BaseContract:
    """The contract; a folder's path as the space becomes the folder's name and a fingerprint.

    A path says too much to clients, and is another one on another machine.
    """
    if contract.space != source or not Path(source).is_absolute():
        return contract
    return contract.model_copy(update={"space": f"{Path(source).name}-{fingerprint}"})


def open_encoder(
    source: str, *, pooling: Pooling | None = None, trust_remote_code: bool = False
) -> TokenEncoder:
    """The encoder of a model's name, or of an export's folder, after it has encoded one text.

    Raises:
        UserError: when it is missing, cannot be loaded, is an API, does not say how it pools, or
            gives no usable vector.
    """
    folder = locate_model(source, include_code=trust_remote_code)
    _check_pooling(folder, source, pooling)
    if export_format(folder) is not None:
        encoder: TokenEncoder = ExportedEncoder(folder)
    else:
        loaded = load_encoder(source, pooling=pooling, trust_remote_code=trust_remote_code)
        assert isinstance(loaded, TokenEncoder), "without access, APIs are refused"
        encoder = loaded
    _check_vectors(encoder, source)
    return encoder


def export_format(folder: Path) -> str | None:
    """The format of an export's folder; None for other folders.

    Raises:
        UserError: when stillroom did not write the export.
    """
    if not is_exported(folder):
        return None
    path = folder / EXPORT_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(path),
            "is not what `stillroom export` writes",
            "Export the model again, or serve the model that it was made from",
        ) from error


def _check_pooling(folder: Path, model: str, pooling: Pooling | None) -> None:
    """Refuses a plain model without a pooling, and a second pooling for another model."""
    own = [file for file in (CONTRACT_FILE, MODULES_FILE) if (folder / file).exists()]
    if pooling is None and not own and adapter_base(folder) is None:
        raise UserError(
            model,
            "is a plain model, which does not say how its states become a vector",
            "Find out how it was trained to pool, and set its pooling (--pooling on the command "
            "line): mean, cls, last, weighted_mean, max or mean_sqrt_len",
        )
    if pooling is not None and own:
        raise UserError(
            f"pooling: {pooling}", f"{model} says itself how it pools, in {own[0]}", "Leave it out"
        )
    if pooling == "latent":
        raise UserError(
            "pooling: latent",
            f"has weights, which {model} lacks",
            "Name the pooling of its authors",
        )


def _check_vectors(encoder: TokenEncoder, model: str) -> None:
    """Encodes one text, as broken weights and a wrong contract show only then."""
    made = encoder.encode(["How do I sort a list?"], "query").shape[1]
    said = encoder.contract.dims[0]
    if made != said:
        raise UserError(
            model,
            f"makes vectors of {made} dims, and its contract says {said}",
            "Restore its files",
        )
