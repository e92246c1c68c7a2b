"""A teacher that is used as it is: one base, or several models at once."""

import logging
from typing import NotRequired, TypedDict

from stillroom.config.teacher import Teacher, TeacherMember
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import combine_encoders, create_encoder
from stillroom.encoders.files.library import (
    create_library_encoder,
    own_forward_options,
    why_by_library,
)
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.files.sentence_transformers import MODULES_FILE
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.encoders.model_names import locate_model, resolve_artifact_name
from stillroom.encoders.proof import ProbedEncoder, probe, prove
from stillroom.storage.artifacts import Draft

log = logging.getLogger(__name__)


class ModelProof(TypedDict):
    """How close a base's vectors are to those of sentence-transformers; see `Proof`."""

    texts: int
    min_cosine: float
    versions: dict[str, str]


class UntrainedSummary(TypedDict):
    """The summary in the artifact's manifest.

    Attributes:
        proof: base → its proof; without those that the library runs itself, that it cannot read, or
            whose reading the recipe changes.
    """

    proof: NotRequired[dict[str, ModelProof]]


def write_untrained_teacher(section: Teacher, out: Draft) -> UntrainedSummary:
    """Writes the teacher's folder, with all weights that our own forward runs.

    Raises:
        UserError: when a base cannot be opened, or has other vectors than in the library.
    """
    if section.members is None:
        assert section.base is not None, "an API is written elsewhere"
        encoder = untrained_encoder(section, section.base, section, out.path.name)
        probed = {section.base: _probe(encoder, section.base, section)}
        save_encoder(encoder, out.path)
        del encoder
    else:
        probed = _write_members(section, section.members, out)
    proofs: dict[str, ModelProof] = {}
    for base, ours in probed.items():
        if ours is not None:
            folder = locate_model(base, include_code=section.trust_remote_code)
            proof = prove(ours, folder, trust_remote_code=section.trust_remote_code)
            proofs[base] = ModelProof(
                texts=proof.texts, min_cosine=proof.min_cosine, versions=proof.versions
            )
    return UntrainedSummary(proof=proofs) if proofs else UntrainedSummary()


def _write_members(
    section: Teacher, members: tuple[TeacherMember, ...], out: Draft
) -> dict[str, ProbedEncoder | None]:
    names = [resolve_artifact_name(member.base, out.store) for member in members]
    encoders = [
        untrained_encoder(section, name, member, f"{out.path.name}/members/{number}")
        for number, (name, member) in enumerate(zip(names, members, strict=True))
    ]
    save_encoder(combine_encoders(encoders, section.combine, space=out.path.name), out.path)
    probed: dict[str, ProbedEncoder | None] = {}
    for name, encoder, member in zip(names, encoders, members, strict=True):
        probed[name] = _probe(encoder, name, member) or probed.get(name)
    return probed


def untrained_encoder(
    section: Teacher, base: str, model: Teacher | TeacherMember, space: str
) -> Encoder | LibraryEncoder:
    """A base as it is, run by what the recipe or the base's folder says.

    Args:
        section: whose precision and trust are its members', too.
        model: the section itself, or one of its members.
    """
    options = ContractOptions.from_fields(model, precision=section.precision)
    code = section.trust_remote_code
    reason = why_by_library(locate_model(base, include_code=code), model.encoder, options)
    if reason is None:
        return create_encoder(base, space=space, options=options, trust_remote_code=code)
    log.info("%s: sentence-transformers runs this model, because it %s", base, reason)
    return create_library_encoder(base, space=space, options=options, trust_remote_code=code)


def _probe(
    encoder: Encoder | LibraryEncoder, base: str, model: Teacher | TeacherMember
) -> ProbedEncoder | None:
    """The probe texts' vectors, where the library should give the same."""
    options = ContractOptions.from_fields(model)
    changed = own_forward_options(options) or options.similarity or options.dims
    of_library = (locate_model(base) / MODULES_FILE).exists()
    if isinstance(encoder, Encoder) and of_library and not changed:
        return probe(encoder, base)
    return None
