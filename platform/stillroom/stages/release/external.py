"""A release of models that were trained elsewhere: measured, gated and copied, without a recipe."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.config.recipe import Release as Section
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import CONTRACT_FILE, BaseContract, Pooling, Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder
from stillroom.encoders.export.int8 import row_agreement
from stillroom.encoders.files.load import require_weights
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.proof import Proof, prove
from stillroom.errors import UserError
from stillroom.evaluation.checked_export import export_and_check
from stillroom.evaluation.evaluate import EncodedSets, encode_sets
from stillroom.evaluation.gate import GateResult, apply_gate
from stillroom.evaluation.known_vectors import KnownVectors
from stillroom.evaluation.same_space import SpaceComparison, compare_spaces, encode_probes
from stillroom.release.open_model import (
    export_format,
    open_encoder,
    probe_published,
    with_portable_space,
)
from stillroom.reports.model_card import Origin, base_license, write_model_card
from stillroom.stages.release.given_models import GivenModel
from stillroom.stages.release.measured import render, report_of
from stillroom.stages.release.playground import choose_passages, write_playground
from stillroom.stages.release.stage import (
    GateFailed,
    ReleaseManifest,
    gate_entry,
    gate_floors,
)
from stillroom.storage.artifacts import Draft
from stillroom.storage.atomic import atomic_write_json

log = logging.getLogger(__name__)
PROBES = 100  # texts of each role on which spaces are compared
COPY_PROBES = 8  # … and on which a copy is compared with its model
COPY_COSINE = 0.9999


@dataclass
class _Measured:
    """What is kept of a model that is loaded no longer."""

    contract: BaseContract
    parameters: int
    probes: dict[Role, np.ndarray]
    copy_probes: dict[Role, np.ndarray]  # of a few texts, to compare the copy with
    encoded: EncodedSets | None
    proof: Proof | None = None  # of a model that sentence-transformers published
    playground: KnownVectors = field(default_factory=KnownVectors)


def create_release(
    *,
    section: Section,
    given: Mapping[str, GivenModel],
    sets: Mapping[str, EvaluationSet],
    more_texts: EvaluationSet,
    trust_remote_code: bool,
    out: Draft,
) -> ReleaseManifest:
    """Writes the release, if the gate passes; one model is in memory at a time.

    Args:
        given: teacher, student or both.
        sets: to measure on; empty: nothing is measured but the spaces.
        more_texts: to compare on, where the sets have too few.

    Returns:
        The content of release.json.

    Raises:
        GateFailed: naming every floor that was missed. Nothing is released.
        UserError: for a model that cannot be opened, and a copy that encodes otherwise.
    """
    ref = f"release/{out.path.name}"
    probes = probe_texts([*sets.values(), more_texts])
    few = {role: texts[:COPY_PROBES] for role, texts in probes.items()}
    chosen = _choose(section, sets)
    measured = {
        role: _measure(
            role, model, sets, probes if len(given) > 1 else {}, few, chosen, trust_remote_code
        )
        for role, model in given.items()
    }
    space = _compare(measured)
    spaces = _spaces(measured, space, ref)
    report = report_of(
        {role: (m.parameters, m.encoded) for role, m in measured.items()},
        {
            role: m.contract.model_copy(update={"space": spaces[role]})
            for role, m in measured.items()
        },
        sets,
    )
    gate = _pass_gate(section, report)
    if report is not None:
        atomic_write_json(out.path / "report.json", report)
        (out.path / "report.html").write_text(render(report, out.path.name), encoding="utf-8")
    formats = {
        role: _copy(model, measured[role], few, out.path / role, spaces[role], trust_remote_code)
        for role, model in given.items()
    }
    exports = _export(section, out, sets or {"texts": more_texts}, trust_remote_code)
    for role, model in given.items():
        _write_cards(
            role,
            model,
            measured[role].proof,
            space,
            report,
            exports if role == "student" else {},
            out,
            ref,
        )
    if chosen:
        known = {role: m.playground for role, m in measured.items()}
        shutil.rmtree(out.path / "playground", ignore_errors=True)
        write_playground(sets, chosen, known, out.path / "playground")
    manifest = ReleaseManifest(
        name=out.name,
        ref=ref,
        models={role: role for role in given},
        formats={role: format for role, format in formats.items() if format is not None},
        exports=exports,
        space={role: spaces[role] for role in given},
        similarity={role: m.contract.similarity for role, m in measured.items()},
        same_space=None if space is None else space.as_json(),
        measured=None if space is None else space.sentence(),
        origin={
            role: {"model": model.ref, "fingerprint": model.fingerprint}
            for role, model in given.items()
        },
        proof={role: asdict(m.proof) for role, m in measured.items() if m.proof is not None},
        report=None if report is None else "report.json",
        playground=list(chosen),
        gate=gate,
    )
    atomic_write_json(out.path / "release.json", manifest)
    return manifest


def probe_texts(sets: Sequence[EvaluationSet]) -> dict[Role, list[str]]:
    """Role → distinct texts to compare models on, from the first sets that have enough."""
    probes: dict[Role, list[str]] = {"query": [], "passage": []}
    for dataset in sets:
        for role, texts in (("query", dataset.queries), ("passage", dataset.passages)):
            of_role = probes[role]  # type: ignore[index]
            new = [text for text in dict.fromkeys(texts.values()) if text not in of_role]
            of_role += [new[row] for row in evenly_spaced(len(new), PROBES - len(of_role))]
    return probes


def _open(source: str, pooling: Pooling | None, trust_remote_code: bool) -> Any:
    """The encoder, on the GPU where there is one."""
    encoder: Any = open_encoder(source, pooling=pooling, trust_remote_code=trust_remote_code)
    movable = isinstance(encoder, Encoder | EnsembleEncoder | LibraryEncoder)  # exports are not
    return encoder.to("cuda") if movable and torch.cuda.is_available() else encoder


def _measure(
    role: str,
    model: GivenModel,
    sets: Mapping[str, EvaluationSet],
    probes: Mapping[Role, Sequence[str]],
    few: Mapping[Role, Sequence[str]],
    chosen: Mapping[str, Any],
    trust_remote_code: bool,
) -> _Measured:
    log.info("release: encodes with the %s, %s", role, model.name)
    encoder = _open(model.source, model.pooling, trust_remote_code)
    measured = _Measured(
        with_portable_space(encoder.contract, model.source, model.fingerprint),
        encoder.parameters_total,
        encode_probes(encoder, probes),
        encode_probes(encoder, few),
        encode_sets(encoder, role, sets) if sets else None,
    )
    folder = locate_model(model.source, include_code=trust_remote_code)
    probed = probe_published(encoder, folder, model.name)
    for name, (ids, _) in chosen.items():
        texts = measured.playground.missing([sets[name].passages[id] for id in ids], "passage")
        measured.playground.add(texts, "passage", encoder.encode(texts, "passage"))
    del encoder  # frees its weights: the proof loads them by the library
    if probed is not None:
        measured.proof = prove(probed, folder, trust_remote_code=trust_remote_code)
    return measured


def _choose(section: Section, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """Set → what of it the playground shows."""
    if section.playground is None:
        return {}
    limit = section.playground.passages
    return {name: choose_passages(dataset, limit) for name, dataset in sets.items()}


def _compare(measured: Mapping[str, _Measured]) -> SpaceComparison | None:
    if len(measured) < 2:
        return None
    student, teacher = measured["student"], measured["teacher"]
    return compare_spaces(student.contract, teacher.contract, student.probes, teacher.probes)


def _spaces(
    measured: Mapping[str, _Measured], space: SpaceComparison | None, ref: str
) -> dict[str, str]:
    """Role → id of its space: one for both exactly where they were measured to share it."""
    ids = {role: m.contract.space for role, m in measured.items()}
    if space is not None and space.conflict is None:
        ids["student"] = ids["teacher"]
    elif space is not None and ids["student"] == ids["teacher"]:
        ids["student"] = f"{ref}/student"
    return ids


def _pass_gate(section: Section, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """The gate's entry in release.json, where nothing is missed. Raises GateFailed."""
    if report is None or "student" not in report["models"]:  # there are no floors, then
        return gate_entry(GateResult(passed=True, failures=()))
    verdict = apply_gate(report, gate_floors(section))
    if not verdict.passed:
        raise GateFailed(
            "release",
            "the gate failed: " + "; ".join(verdict.failures),
            "Name a better student, or lower the floors",
        )
    return gate_entry(verdict)


def _copy(
    model: GivenModel,
    measured: _Measured,
    few: Mapping[Role, Sequence[str]],
    folder: Path,
    space: str,
    trust_remote_code: bool,
) -> str | None:
    """Copies a model into a space, and compares the copy's vectors; returns an export's format."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    located = locate_model(model.source, include_code=trust_remote_code)
    format = export_format(located)
    if format is not None or (located / CONTRACT_FILE).exists():
        shutil.copytree(located, folder, ignore=shutil.ignore_patterns("manifest.json"))
    else:
        encoder: Any = open_encoder(
            model.source, pooling=model.pooling, trust_remote_code=trust_remote_code
        )
        if isinstance(encoder, LibraryEncoder):  # whose files are the library's to read
            shutil.copytree(located, folder)
        save_encoder(encoder, folder)
    BaseContract.read(folder).model_copy(update={"space": space}).write(folder)
    copy = _open(str(folder), None, trust_remote_code)
    # The same texts together, since sixteen bits round by the batch.
    for role, copied in encode_probes(copy, few).items():
        worst = float(row_agreement(copied, measured.copy_probes[role]).min())
        if worst < COPY_COSINE:
            raise UserError(
                model.name,
                f"gives other vectors once it is saved: a cosine of {worst:.5f} at worst",
                "Save it with the library that trained it, or export it, and name that folder",
            )
    return format


def _export(
    section: Section,
    out: Draft,
    sets: Mapping[str, EvaluationSet],
    trust_remote_code: bool,
) -> dict[str, dict[str, Any]]:
    """Writes and checks every export of the student; format → its entry in release.json."""
    entries: dict[str, dict[str, Any]] = {}
    for format in section.exports:
        opened: Any = open_encoder(str(out.path / "student"), trust_remote_code=trust_remote_code)
        folder = out.path / "student" / format
        encoder = require_weights(opened, "student")
        export = export_and_check(encoder, format, folder, sets, "the texts of the release")
        entries[format] = {"folder": f"student/{format}", **export["check"]}
    return entries


def _write_cards(
    role: str,
    model: GivenModel,
    proof: Proof | None,
    space: SpaceComparison | None,
    report: Mapping[str, Any] | None,
    exports: Mapping[str, Any],
    out: Draft,
    ref: str,
) -> None:
    """Writes the card of a model and of its exports."""
    origin = Origin(
        model=model.ref,
        fingerprint=model.fingerprint,
        license=base_license(model.source),
        measured=None if space is None else space.sentence(),
        proof=None if proof is None else (proof.texts, proof.min_cosine),
    )
    for folder, name in (
        (out.path / role, model.name),
        *((out.path / role / format, f"{model.name}, {format}") for format in exports),
    ):
        write_model_card(
            folder, name, model.artifact, out.store,
            report=report, release=ref, role=role, origin=origin,
        )  # fmt: skip
