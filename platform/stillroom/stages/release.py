"""The gate, then the folder that serving takes."""

import json
import shutil
from typing import Any

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config.recipe import Release as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Terms
from stillroom.encoders.quantise import FILE as CALIBRATION
from stillroom.errors import UserError
from stillroom.measure.gate import Floors, judge


class GateFailed(UserError):
    """What was measured is below what the recipe asks for."""


def release(
    *,
    section: Section,
    gate: bool,
    teacher: Artifact,
    student: Artifact,
    report: Artifact,
    scale: Scale,
    out: Draft,
) -> dict[str, Any]:
    """Writes teacher/, student/ with its calibration, report.json, report.html and release.json.

    Raises:
        GateFailed: naming every floor that was missed and by how much. Nothing is released.
    """
    verdict = judge(
        json.loads((report.path / "report.json").read_text()),
        Floors(**section.model_dump()),
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
    content = {
        "name": out.path.name.rpartition("-")[0],
        "ref": f"release/{out.path.name}",
        "models": {"teacher": "teacher", "student": "student"},
        "space": {
            "teacher": Terms.read(teacher.path).space,
            "student": Terms.read(student.path).space,
        },
        "report": "report.json",
        "gate": {
            "passed": verdict.passed,
            "failures": list(verdict.failures),
            "overridden": not verdict.passed,
        },
    }
    atomic_json(out.path / "release.json", content)
    return content
