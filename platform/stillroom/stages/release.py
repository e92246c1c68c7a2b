"""The gate, then the folder that serving takes."""

import json
import shutil
from typing import Any

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config.recipe import Release as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Contract
from stillroom.encoders.quantise import FILE as CALIBRATION
from stillroom.errors import UserError
from stillroom.measure.gate import Floors, judge
from stillroom.stages.showcase import showcase


class GateFailed(UserError):
    """What was measured is below what the recipe asks for."""


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
) -> dict[str, Any]:
    """Writes teacher/, student/ with its calibration, report.json, report.html and release.json;
    playground/SET/, where the recipe has one.

    Raises:
        GateFailed: naming every floor that was missed and by how much. Nothing is released.
    """
    verdict = judge(
        json.loads((report.path / "report.json").read_text()),
        Floors(**section.model_dump(exclude={"playground"})),
    )
    if gate and not verdict.passed:
        raise GateFailed(
            "release",
            "the gate failed: " + "; ".join(verdict.failures),
            "Train longer, lower the floors in the recipe's release section, "
            "or release all the same with --no-gate",
        )
    for name, model in (("teacher", teacher), ("student", student)):
        shutil.copytree(model.path, out.path / name, ignore=shutil.ignore_patterns("manifest.json"))
    for name in ("report.json", "report.html"):
        shutil.copy2(report.path / name, out.path / name)
    # Beside the weights: the ranges that int8 vectors of this student were measured with.
    shutil.copy2(report.path / CALIBRATION, out.path / "student" / CALIBRATION)
    shown: list[str] = []
    if section.playground is not None:
        folder = out.path / "playground"
        shown = showcase(section.playground, corpus, teacher, student, scale, folder)
    content = {
        "name": out.path.name.rpartition("-")[0],
        "ref": f"release/{out.path.name}",
        "models": {"teacher": "teacher", "student": "student"},
        "space": {
            "teacher": Contract.read(teacher.path).space,
            "student": Contract.read(student.path).space,
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
