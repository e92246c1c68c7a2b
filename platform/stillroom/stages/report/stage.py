"""The stage `report`: teacher, student, their bases and BM25 on the same evaluation sets.

It measures quality, retention, speed and size; the student's quality in small vectors; and the
quality of its queries among its teacher's passages.
"""

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

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
from stillroom.reports.tables import verdict
from stillroom.stages.api_teacher import api_encoder
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets, read_guards
from stillroom.stages.corpus.languages import read_languages
from stillroom.stages.report.elsewhere import against_base, elsewhere_block
from stillroom.stages.report.measure import (
    MeasuredModel,
    measure_api,
    measure_models,
    texts_to_encode,
)
from stillroom.stages.report.models import models_to_measure
from stillroom.stages.report.tokenizers import sample_texts, tokenizer_fits
from stillroom.stages.student_start import StudentStart
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
    tokenizers: dict[str, dict[str, Any]]  # role → as `tokenizer_fits` returns it
    hardware: str
    elsewhere: NotRequired[dict[str, Any]]  # `elsewhere_block`, where the corpus has guards
    against_base: NotRequired[dict[str, Any]]  # as `against_base` returns it


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
    sets, guards = read_evaluation_sets(corpus), read_guards(corpus)
    require_capacity("report", scale.report, 1)
    models = models_to_measure(section, corpus, teacher, student, trusted)
    api = api_encoder(teacher.path, scale.teacher_api, out.store)
    elsewhere = sum(model.measured_elsewhere for model in models.values()) + (api is not None)
    total = texts_to_encode(sets) * (len(models) + (api is not None))
    progress = Progress(total + texts_to_encode(guards) * elsewhere, label="report")
    measured = measure_models(models, corpus, scale.report, progress)
    if api is not None:
        measured["teacher"] = measure_api(api, sets, guards, progress)
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
    both = None
    if index_conflict(*contracts) is None:
        both = combine_asymmetric(by_student, by_teacher, shared_dims(*contracts))
        entries["student asks, teacher answers"] = asymmetric_entry(entries, both, sets)
        entries |= _start_among_the_teacher_s(student, measured, entries, contracts, sets)
    languages = read_languages(corpus)["evaluation"] if section.bm25 else None
    if languages is not None:
        entries["BM25"] = evaluate_bm25(sets, languages)
    _warn_of_unreliable_speeds(entries)
    result = Report(
        sets={name: dataset.counts() for name, dataset in sets.items()},
        models=entries,
        retention=retention(entries["teacher"], entries["student"]),
        tokenizers=tokenizer_fits(
            {"teacher": teacher.path, "student": student.path},
            sample_texts(CorpusData.open(corpus), sets),
            trusted,
        ),
        hardware=describe_hardware(ray.cluster_resources().get("GPU", 0)),
    )
    if guards:
        result["elsewhere"] = elsewhere_block(measured, guards, languages, both)
    if (differences := against_base(measured, sets, guards)) is not None:
        result["against_base"] = differences
    if (sentence := verdict(result)) is not None:
        log.info("report: %s", sentence)
    atomic_write_json(out.path / "report.json", result)
    extras = {
        "name": out.path.name,
        "hardware": result["hardware"],
        "losses": {"teacher": _losses(teacher), "student": _losses(student)},
        "negatives": negatives and json.loads((negatives.path / "counts.json").read_text()),
    }
    (out.path / "report.html").write_text(render_report(result, extras), encoding="utf-8")
    return result


def _start_among_the_teacher_s(
    student: Artifact,
    measured: Mapping[str, MeasuredModel],
    entries: Mapping[str, dict[str, Any]],
    contracts: tuple[BaseContract, BaseContract],
    sets: Mapping[str, EvaluationSet],
) -> dict[str, dict[str, Any]]:
    """The entry of the untrained student's queries among the teacher's passages, where it was
    measured and had a projection into that space; else none."""
    before, start = measured.get("student before training"), StudentStart.read(student.path)
    if before is None or before.encoded is None or start is None or start.weight is None:
        return {}
    by_teacher = measured["teacher"].encoded
    assert by_teacher is not None, "the teacher's vectors are kept"
    both = combine_asymmetric(before.encoded, by_teacher, shared_dims(*contracts))
    entry = {**asymmetric_entry(entries, both, sets), "role": "asymmetric_base"}
    return {"student before training asks, teacher answers": entry}


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
    for name, entry in entries.items():  # asymmetric ones have the teacher's speed
        spread = entry.get("texts_per_second_spread")
        if is_unreliable(spread) and not entry["role"].startswith("asymmetric"):
            log.warning(
                "report: the speed of %s is unreliable: its fastest round was %.1f times as fast "
                "as its slowest. The machine is busy with other work, or the sets are very small",
                name, spread,
            )  # fmt: skip


def _losses(artifact: Artifact) -> list[tuple[int, float]]:
    """(step, loss) of a model's training; [] of one that was not trained."""
    if not (artifact.path / METRICS_FILE).exists():
        return []
    steps = read_history(artifact.path)
    return [(int(step["step"]), step["loss"]) for step in steps if "loss" in step]


def describe_hardware(gpus: float) -> str:
    """The hardware and software of the measurement."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.machine()}, {psutil.cpu_count()} CPUs, {memory:.0f} GiB, "
        f"{gpus:.0f} GPUs, Python {platform.python_version()}"
    )
