"""The gate, then the folder that serving takes, with the exports that the recipe asks for."""

import json
import shutil
from collections.abc import Sequence
from typing import Any

from stillroom.config.recipe import Release as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Contract, Terms
from stillroom.encoders.files.load import load, weights_of
from stillroom.encoders.vectors.quantise import FILE as CALIBRATION
from stillroom.errors import UserError
from stillroom.evaluation.checked_export import exported
from stillroom.evaluation.gate import Floors, judge
from stillroom.reports.model_card import write_card
from stillroom.stages.corpus.artifact import evaluation_sets
from stillroom.stages.release.playground import showcase
from stillroom.storage.artifacts import Artifact, Draft, atomic_json


class GateFailed(UserError):
    """What was measured is below what the recipe asks for."""

    code = 1


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
) -> dict[str, Any]:
    """Writes teacher/ and student/ with their cards, the student's calibration, student/FORMAT for
    every export, playground/SET/ where the recipe has one, report.json, report.html and
    release.json.

    Args:
        trusted: which of teacher and student may run code that they bring with them.

    Raises:
        GateFailed: naming every floor that was missed and by how much. Nothing is released.
        UserError: when an export is not like the student.
    """
    measured = json.loads((report.path / "report.json").read_text())
    verdict = judge(measured, Floors(**section.model_dump(exclude={"exports", "playground"})))
    if gate and not verdict.passed:
        raise GateFailed(
            "release",
            "the gate failed: " + "; ".join(verdict.failures),
            "Train longer, lower the floors in the recipe's release section, "
            "or release all the same with --no-gate",
        )
    ref = f"release/{out.path.name}"
    for name, model in (("teacher", teacher), ("student", student)):
        folder = out.path / name
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
        # An API, and several models as one, are nothing that a card's reader could open.
        if isinstance(Terms.read(folder), Contract):
            write_card(folder, model.name, model, out.store, report=measured, release=ref)
    exports = {}
    trust = "student" in trusted
    sets = evaluation_sets(corpus) if section.exports else {}
    for format in section.exports:
        encoder = weights_of(load(student.path, trust_remote_code=trust), "student")
        folder = out.path / "student" / format
        exports[format] = exported(encoder, format, folder, sets, "the evaluation sets")
        write_card(folder, f"{student.name}, {format}", student, out.store, report=measured)
    for name in ("report.json", "report.html"):
        shutil.copy2(report.path / name, out.path / name)
    # Beside the weights: the ranges that int8 vectors of this student were measured with.
    shutil.copy2(report.path / CALIBRATION, out.path / "student" / CALIBRATION)
    shown: list[str] = []
    if section.playground is not None:
        folder = out.path / "playground"
        shown = showcase(section.playground, corpus, teacher, student, scale, folder, trusted)
    content = {
        "name": out.path.name.rpartition("-")[0],
        "ref": ref,
        "models": {"teacher": "teacher", "student": "student"},
        "exports": {
            format: {"folder": f"student/{format}", **told["check"]}
            for format, told in exports.items()
        },
        "space": {
            "teacher": Terms.read(teacher.path).space,
            "student": Terms.read(student.path).space,
        },
        "report": "report.json",
        "playground": shown,
        "gate": {
            "passed": verdict.passed,
            "failures": list(verdict.failures),
            "overridden": not verdict.passed,
        },
    }
    atomic_json(out.path / "release.json", content)
    return content
