"""Encodes probe texts with the files of a model that a recipe names, before anything expensive.

Our own forward is tried on a copy with a tiny transformer of random weights, and compared with
sentence-transformers where the folder is of that library's format. It finds what loads and then
fails, or gives other vectors: a tokenizer of another vocabulary, missing positions, other pooling.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillroom.config.student import Student
from stillroom.encoders.contract import CONTRACT_FILE, Role
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.library import (
    create_library_encoder,
    own_forward_options,
    why_by_library,
)
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.sentence_transformers import MODULES_FILE, read_modules
from stillroom.encoders.files.small_copy import small_copy
from stillroom.encoders.model_names import adapter_base, locate_model
from stillroom.encoders.proof import TEXTS, probe, prove
from stillroom.encoders.remote_code import needs_remote_code
from stillroom.errors import UserError, one_line
from stillroom.preflight.models import BaseModel

ROLES: tuple[Role, ...] = ("query", "passage")
OPENED_BYTES = 1 << 30  # of weights that the library may load for a check


def try_model(model: BaseModel) -> str:
    """What was tried with a model that `check_model` passed, in some words.

    Raises:
        UserError: when a text cannot be encoded, or has another vector than in the library.
    """
    folder = locate_model(model.name, include_code=model.trusted)
    if (base := adapter_base(folder)) is not None:
        if (folder / MODULES_FILE).exists():  # which say how to pool, and the base does not
            return f"an adapter of {base}, and not tried"
        return try_model(replace(model, name=base))
    if (folder / CONTRACT_FILE).exists():
        return "written by stillroom"
    options = _options(model)
    if why_by_library(folder, model.encoder, options) is not None:
        return _try_in_library(model, folder, options)
    if (folder / MODULES_FILE).exists():
        read_modules(folder)  # refuses what only the library can run
    if needs_remote_code(folder):
        return "comes with its own code, and was not tried"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            copy = small_copy(folder, Path(temporary) / "model")
        except UserError:
            raise
        except Exception as error:  # an architecture whose sizes depend on each other
            return f"has no small form, and was not tried ({one_line(error, 80)})"
        return _try_copy(model, folder, copy, options)


def _options(model: BaseModel) -> ContractOptions:
    """The recipe's options, without those of the vectors' sizes and lengths."""
    if model.section is None:
        return ContractOptions(precision="float32")
    options = ContractOptions.from_fields(model.section, precision="float32")
    if isinstance(model.section, Student) and model.section.size is not None:
        options = replace(options, max_tokens=None)  # random weights get the positions they need
    return replace(options, dims=None, similarity=None)


def _try_in_library(model: BaseModel, folder: Path, options: ContractOptions) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if size > OPENED_BYTES:
        return "run by sentence-transformers, and too large to try"
    encoder = create_library_encoder(
        model.name, space="trial", options=options, trust_remote_code=model.trusted
    )
    texts = [text for text in TEXTS if text]
    for role in ROLES:
        vectors = encoder.encode_batch(encoder.prompter(texts, role))
        if not np.isfinite(vectors).all():  # zeros are of texts without a word that it knows
            raise UserError(
                f"{model.field}: {model.name}",
                "gives vectors that are not finite",
                "Restore its files, or use another model",
            )
    return f"run by sentence-transformers; {2 * len(texts)} texts encoded"


def _try_copy(model: BaseModel, folder: Path, copy: Path, options: ContractOptions) -> str:
    if options.pooling == "latent":
        options = replace(options, pooling="mean")  # its sizes fit the real width
    try:
        encoder = create_encoder(str(copy), space="trial", options=options)
        probed = probe(encoder, f"{model.field}: {model.name}", full_length=True)
        if (folder / MODULES_FILE).exists() and not own_forward_options(options):
            proof = prove(probed, copy)
            return f"{proof.texts} texts as in sentence-transformers (random weights)"
    except UserError as error:
        where = error.where.replace(str(copy), str(folder))
        raise UserError(where, error.problem.replace(str(copy), str(folder)), error.fix) from None
    return f"{len(probed.probes)} texts encoded (random weights)"
