"""The stage `report`: teacher, student, their bases and BM25 on the same evaluation sets.

It measures quality, retention, speed and size; the student's quality in small vectors; and the
quality of its queries among its teacher's passages.
"""

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import psutil
import ray

from stillroom.cluster.capacity import require_capacity
from stillroom.cluster.progress import Progress
from stillroom.config.recipe import Report as Section
from stillroom.config.scale import Scale
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import BaseContract, index_conflict
from stillroom.encoders.vectors.quantise import write_calibrations
from stillroom.evaluation.evaluate import (
    EncodedSets,
    combine_asymmetric,
    evaluate_bm25,
    report_entry,
    retention,
    shared_dims,
)
from stillroom.evaluation.known_vectors import write_vectors
from stillroom.evaluation.small_vectors import evaluate_precisions
from stillroom.evaluation.speed import is_unreliable
from stillroom.reports.render import render_report
from stillroom.stages.api_teacher import api_encoder
from stillroom.stages.corpus.artifact import read_evaluation_sets
from stillroom.stages.corpus.languages import read_languages
from stillroom.stages.report.measure import measure_api, measure_models, texts_to_encode
from stillroom.stages.report.models import models_to_measure
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json
from stillroom.training.history import METRICS_FILE, read_history

SPEED = ("texts_per_second", "texts_per_second_spread")  # of an entry; the spread may be missing
VECTORS_FOLDER = "vectors"  # of ROLE.safetensors: vectors that the release reuses
log = logging.getLogger(__name__)


class Report(TypedDict):
    """The content of report.json."""

    sets: dict[str, dict[str, int]]  # set → `EvaluationSet.counts`
    models: dict[str, dict[str, Any]]  # name → entry, as `report_entry` makes it
    retention: dict[str, float | None]  # set, and "mean" → student / teacher
    hardware: str


def report(
    *,
    section: Section,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    scale: Scale,
    out: Draft,
    negatives: Artifact | None = None,
    trusted: Sequence[str] = (),
) -> Report:
    """Writes report.json, report.html, the student's calibration, and vectors for the release.

    Args:
        negatives: those that the student was trained with, where any were mined.
        trusted: which of teacher and student may run code that comes with them.

    Returns:
        The content of report.json.
    """
    sets = read_evaluation_sets(corpus)
    require_capacity("report", scale.report, 1)
    models = models_to_measure(section, corpus, teacher, student, trusted)
    api = api_encoder(teacher.path, scale.teacher_api, out.store)
    total = texts_to_encode(len(models) + (api is not None), sets)
    progress = Progress(total, label="report")
    measured = measure_models(models, corpus, scale.report, progress)
    if api is not None:
        measured["teacher"] = measure_api(api, sets, progress)
    entries = {name: model.entry for name, model in measured.items()}
    by_teacher, by_student = measured["teacher"].encoded, measured["student"].encoded
    calibrations = measured["student"].calibrations
    assert by_teacher is not None and by_student is not None and calibrations is not None
    if api is None:
        _keep_vectors(out, "teacher", by_teacher, sets, own_prompts=False)
    _keep_vectors(out, "student", by_student, sets, own_prompts=True)
    write_calibrations(out.path, calibrations)
    entries["student"]["vectors"] = evaluate_precisions(by_student, sets, calibrations=calibrations)
    contracts = BaseContract.read(student.path), BaseContract.read(teacher.path)
    if index_conflict(*contracts) is None:
        both = combine_asymmetric(by_student, by_teacher, shared_dims(*contracts))
        entries["student asks, teacher answers"] = asymmetric_entry(entries, both, sets)
    if section.bm25:
        entries["BM25"] = evaluate_bm25(sets, read_languages(corpus)["evaluation"])
    _warn_of_unreliable_speeds(entries)
    result = Report(
        sets={name: dataset.counts() for name, dataset in sets.items()},
        models=entries,
        retention=retention(entries["teacher"], entries["student"]),
        hardware=describe_hardware(ray.cluster_resources().get("GPU", 0)),
    )
    atomic_write_json(out.path / "report.json", result)
    extras = {
        "name": out.path.name,
        "hardware": result["hardware"],
        "losses": {"teacher": _losses(teacher), "student": _losses(student)},
        "negatives": negatives and json.loads((negatives.path / "counts.json").read_text()),
    }
    (out.path / "report.html").write_text(render_report(result, extras), encoding="utf-8")
    return result


def _keep_vectors(
    out: Draft, role: str, encoded: EncodedSets, sets: dict[str, Any], *, own_prompts: bool
) -> None:
    file = out.path / VECTORS_FOLDER / f"{role}.safetensors"
    write_vectors(file, encoded, sets, own_prompts=own_prompts)


def asymmetric_entry(
    entries: Mapping[str, dict[str, Any]], encoded: EncodedSets, sets: Mapping[str, EvaluationSet]
) -> dict[str, Any]:
    """The entry of the student's queries among the teacher's passages, at the teacher's speed."""
    teacher = entries["teacher"]
    entry = report_entry("asymmetric", entries["student"]["parameters"], encoded, sets)
    speed = {k: teacher[k] for k in SPEED if k in teacher}
    return {**entry, **speed, "retention": retention(teacher, entry)}


def _warn_of_unreliable_speeds(entries: dict[str, dict[str, Any]]) -> None:
    for name, entry in entries.items():
        spread = entry.get("texts_per_second_spread")
        if is_unreliable(spread) and entry["role"] != "asymmetric":  # the teacher's speed
            log.warning(
                "report: the speed of %s is unreliable: its fastest round was %.1f times as fast "
                "as its slowest. The machine is busy with other work, or the sets are very small",
                name, spread,
            )  # fmt: skip


def _losses(artifact: Artifact) -> list[tuple[int, float]]:
    """(step, loss) of a model's training; [] of one that was not trained."""
    if not (artifact.path / METRICS_FILE).exists():
        return []
    return [(int(step["step"]), step["loss"]) for step in read_history(artifact.path)]


def describe_hardware(gpus: float) -> str:
    """The hardware and software of the measurement."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.machine()}, {psutil.cpu_count()} CPUs, {memory:.0f} GiB, "
        f"{gpus:.0f} GPUs, Python {platform.python_version()}"
    )
