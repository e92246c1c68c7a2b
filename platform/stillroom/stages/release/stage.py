"""The stage `release`: the gate, then the folder that serving loads, with the recipe's exports."""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from stillroom.cluster.progress import Progress
from stillroom.config.recipe import Release as Section
from stillroom.config.scale import Scale
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract, Contract, Similarity
from stillroom.encoders.files.load import load_encoder, require_weights
from stillroom.encoders.vectors.quantise import CALIBRATION_FILE
from stillroom.errors import UserError
from stillroom.evaluation.checked_export import export_and_check
from stillroom.evaluation.gate import GateFloors, GateResult, apply_gate
from stillroom.evaluation.known_vectors import KnownVectors
from stillroom.reports.model_card import write_model_card
from stillroom.stages.api_teacher import is_api
from stillroom.stages.corpus.artifact import read_evaluation_sets
from stillroom.stages.release.playground import (
    choose_passages,
    encode_missing,
    write_playground,
)
from stillroom.stages.report.stage import VECTORS_FOLDER
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json


class GateFailed(UserError):
    """The report is below the recipe's floors."""

    code = 1


class ReleaseManifest(TypedDict):
    """The content of release.json."""

    name: str
    ref: str
    models: dict[str, str]  # role → folder
    exports: dict[str, dict[str, Any]]  # format → folder, and its comparison with the student
    space: dict[str, str]  # role → id of its vector space
    similarity: dict[str, Similarity]  # role → what an index of its vectors compares by
    report: str | None
    playground: list[str]  # sets
    gate: dict[str, Any]
    # Of models that were trained elsewhere.
    formats: NotRequired[dict[str, str]]  # role → format of a model that is an export itself
    same_space: NotRequired[dict[str, Any] | None]  # the comparison of two models' vectors
    proof: NotRequired[dict[str, dict[str, Any]]]  # role → its comparison with the library
    measured: NotRequired[str | None]  # … as a sentence
    origin: NotRequired[dict[str, dict[str, str]]]  # role → the model and its fingerprint


def release(
    *,
    section: Section,
    gate: bool,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    report: Artifact,
    scale: Scale,
    out: Draft,
    trusted: Sequence[str] = (),
) -> ReleaseManifest:
    """Writes the release, if the gate passes.

    That is teacher/ and student/ with their cards, the student's calibration, student/FORMAT for
    every export, playground/SET/ where the recipe has a playground, report.json, report.html and
    release.json. Reuses the vectors that the report made.

    Args:
        gate: without it, everything is released, and the failures are recorded.
        trusted: which of teacher and student may run code that comes with them.

    Returns:
        The content of release.json.

    Raises:
        GateFailed: naming every floor that was missed and by how much. Nothing is released.
        UserError: when an export differs too much from the student.
    """
    measured = json.loads((report.path / "report.json").read_text())
    verdict = apply_gate(measured, gate_floors(section))
    if gate and not verdict.passed:
        raise GateFailed(
            "release",
            "the gate failed: " + "; ".join(verdict.failures),
            "Train longer, lower the floors in the recipe's release section, "
            "or release anyway with --no-gate",
        )
    ref = f"release/{out.path.name}"
    models = {"teacher": teacher, "student": student}
    _copy_models(models, out, measured, ref)
    sets = read_evaluation_sets(corpus)
    known = {
        role: KnownVectors.read(report.path / VECTORS_FOLDER / f"{role}.safetensors", sets)
        for role, model in models.items()
        if not is_api(model.path)  # it is not served
    }
    exports = _export(section, student, sets, known["student"], out, measured, trusted)
    playground = _playground(section, models, sets, known, scale, out, trusted)
    for name in ("report.json", "report.html"):
        shutil.copy2(report.path / name, out.path / name)
    # Beside the weights: the ranges with which the report measured int8 vectors.
    shutil.copy2(report.path / CALIBRATION_FILE, out.path / "student" / CALIBRATION_FILE)
    contracts = {role: BaseContract.read(model.path) for role, model in models.items()}
    manifest = ReleaseManifest(
        name=out.path.name.rpartition("-")[0],
        ref=ref,
        models={role: role for role in models},
        exports=exports,
        space={role: contract.space for role, contract in contracts.items()},
        similarity={role: contract.similarity for role, contract in contracts.items()},
        report="report.json",
        playground=playground,
        gate=gate_entry(verdict),
    )
    atomic_write_json(out.path / "release.json", manifest)
    return manifest


def _copy_models(
    models: Mapping[str, Artifact], out: Draft, measured: dict[str, Any], ref: str
) -> None:
    """Copies the models' folders, with a card in each that can be loaded from its folder alone."""
    for role, model in models.items():
        folder = out.path / role
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
        shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
        # A card's reader could open neither an API nor an ensemble.
        if isinstance(BaseContract.read(folder), Contract):
            write_model_card(folder, model.name, model, out.store, report=measured, release=ref)


def _export(
    section: Section,
    student: Artifact,
    sets: Mapping[str, EvaluationSet],
    known: KnownVectors,
    out: Draft,
    measured: dict[str, Any],
    trusted: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Writes and checks every export; format → its entry in release.json."""
    texts = sum(len(dataset.queries) + len(dataset.passages) for dataset in sets.values())
    progress = Progress(texts * len(section.exports), label="release: checks exports")
    entries: dict[str, dict[str, Any]] = {}
    for format in section.exports:
        trust_remote_code = "student" in trusted
        encoder = require_weights(
            load_encoder(student.path, trust_remote_code=trust_remote_code), "student"
        )
        folder = out.path / "student" / format
        export = export_and_check(
            encoder, format, folder, sets, "the evaluation sets",
            original=known.completed_by(encoder.encode), on_texts=progress.add,
        )  # fmt: skip
        write_model_card(folder, f"{student.name}, {format}", student, out.store, report=measured)
        entries[format] = {"folder": f"student/{format}", **export["check"]}
    return entries


def _playground(
    section: Section,
    models: Mapping[str, Artifact],
    sets: Mapping[str, EvaluationSet],
    known: Mapping[str, KnownVectors],
    scale: Scale,
    out: Draft,
    trusted: Sequence[str],
) -> list[str]:
    """Writes the playground's folders; returns the names of its sets."""
    if section.playground is None:
        return []
    limit = section.playground.passages
    chosen = {name: choose_passages(dataset, limit) for name, dataset in sets.items()}
    texts = [sets[name].passages[id] for name, (ids, _) in chosen.items() for id in ids]
    missing = sum(len(vectors.missing(texts, "passage")) for vectors in known.values())
    progress = Progress(missing, label="release: encodes the playground")
    for role, vectors in known.items():
        encode_missing(
            models[role], texts, vectors, scale.report, progress,
            trust_remote_code=role in trusted,
        )  # fmt: skip
    write_playground(sets, chosen, known, out.path / "playground")
    return list(chosen)


def gate_floors(section: Section) -> GateFloors:
    """The floors that a recipe's release section sets."""
    floors = section.model_dump(exclude={"exports", "playground", "elsewhere"})
    elsewhere = {
        f"elsewhere_{name}": value for name, value in section.elsewhere.model_dump().items()
    }
    return GateFloors(**floors, **elsewhere)


def gate_entry(verdict: GateResult) -> dict[str, Any]:
    """The gate's part of release.json."""
    return {
        "passed": verdict.passed,
        "failures": list(verdict.failures),
        "overridden": not verdict.passed,
    }
