"""Teacher, student, their bases and BM25 on the same sets: quality, retention, speed, size.

Also what the student keeps in small vectors, and among its teacher's passages.
"""

import functools
import json
import platform
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import ray
import torch

from stillroom.cluster.capacity import asks, require
from stillroom.config.load import validated
from stillroom.config.recipe import Report as Section
from stillroom.config.scale import Scale
from stillroom.config.student import Student
from stillroom.data.cleaning.sampling import evenly
from stillroom.encoders.contract import Contract, Terms, cannot_share_index
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.interface import Embedder, prefix
from stillroom.encoders.vectors.quantise import Calibration, write_calibrations
from stillroom.evaluation.evaluate import (
    Encoded,
    asymmetric,
    encode_sets,
    entry,
    measure_bm25,
    retention,
    shared_dims,
)
from stillroom.evaluation.small_vectors import measure_small
from stillroom.reports.render import render
from stillroom.stages.api_teacher import remote_of
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.stages.student import bare
from stillroom.storage.artifacts import Artifact, Draft, atomic_json

CALIBRATED_ON = 1024  # of the corpus's passages


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
) -> dict[str, Any]:
    """Writes report.json, report.html and the student's calibration; returns the first.

    Args:
        negatives: those that the student had, if any were mined.
        trusted: which of teacher and student may run code that they bring with them.
    """
    code = {role: role in trusted for role in ("teacher", "student")}
    remote = remote_of(teacher.path, scale.teacher_api, out.store)
    models: dict[str, tuple[str, Callable[[], Embedder]]] = {
        name: (name, functools.partial(_loaded, of, code[name]))
        for name, of in (("teacher", teacher), ("student", student))
        if name == "student" or remote is None
    }
    if section.bases:
        if teacher.manifest["made_by"]["section"]["phase"] is not None:
            untrained = functools.partial(_untrained, teacher, code["teacher"])
            models["teacher before training"] = ("teacher_base", untrained)
        begun = functools.partial(_begun, student, corpus)
        models["student before training"] = ("student_base", begun)
    # One after the other: a speed measured beside another model's would be the wrong one.
    require("report", scale.report, 1)
    share = asks(scale.report)
    task = ray.remote(num_returns=2, **share)(_measured)
    found: dict[str, dict[str, Any]] = {}
    vectors: dict[str, ray.ObjectRef] = {}  # they stay where they were made until they are read
    for name, (role, make) in models.items():
        measured, encoded = task.remote(make, role, corpus)
        found[name] = ray.get(measured)
        if role in ("teacher", "student"):
            vectors[role] = encoded
    sets = evaluation_sets(corpus)
    by_student = ray.get(vectors["student"])
    if remote is None:
        by_teacher = ray.get(vectors["teacher"])
    else:
        # Asked from here, where its answers are kept; which says nothing of its speed.
        by_teacher = encode_sets(remote, "teacher", sets)
        measured = entry("teacher", remote.parameters_total, by_teacher, sets)
        found["teacher"] = {**measured, "texts_per_second": None}
    calibrate = ray.remote(**share)(_calibrations)
    calibrations = ray.get(calibrate.remote(student, corpus, code["student"]))
    write_calibrations(out.path, calibrations)
    found["student"]["vectors"] = measure_small(by_student, sets, calibrations=calibrations)
    terms = Terms.read(student.path), Terms.read(teacher.path)
    if cannot_share_index(*terms) is None:
        both = asymmetric(by_student, by_teacher, shared_dims(*terms))
        measured = entry("asymmetric", found["student"]["parameters"], both, sets)
        measured["retention"] = retention(found["teacher"], measured)
        found["student asks, teacher answers"] = measured
    if section.bm25:
        found["BM25"] = measure_bm25(sets)
    figures = {
        "sets": {
            name: {"queries": len(kept.qrels), "passages": len(kept.passages)}
            for name, kept in sets.items()
        },
        "models": found,
        "retention": retention(found["teacher"], found["student"]),
        "hardware": hardware(),
    }
    atomic_json(out.path / "report.json", figures)
    extras = {
        "name": out.path.name,
        "hardware": figures["hardware"],
        "losses": {"teacher": _losses(teacher), "student": _losses(student)},
        "negatives": negatives and json.loads((negatives.path / "counts.json").read_text()),
    }
    (out.path / "report.html").write_text(render(figures, extras), encoding="utf-8")
    return figures


def _measured(
    make: Callable[[], Embedder], role: str, corpus: Artifact
) -> tuple[dict[str, Any], Encoded]:
    encoder, sets = _here(make()), evaluation_sets(corpus)
    encoded = encode_sets(encoder, role, sets)
    return entry(role, encoder.parameters_total, encoded, sets), encoded


def _calibrations(
    student: Artifact, corpus: Artifact, trust_remote_code: bool
) -> dict[int, Calibration]:
    """How the student's vectors of the corpus's passages spread, at each of its sizes."""
    encoder = _here(load(student.path, trust_remote_code=trust_remote_code))
    passages = CorpusFiles.read(corpus).passages
    rows = evenly(len(passages), CALIBRATED_ON)
    vectors = encoder.encode([passages[row] for row in rows], "passage")
    normalise = encoder.contract.normalise
    return {
        dims: Calibration.of(prefix(vectors, dims, normalise)) for dims in encoder.contract.dims
    }


def _here(encoder: Embedder) -> Embedder:
    """On what this task was given."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"])))
    return encoder.to("cuda" if ray.get_gpu_ids() else "cpu")


def _loaded(model: Artifact, trust_remote_code: bool) -> Embedder:
    return load(model.path, trust_remote_code=trust_remote_code)


def _untrained(teacher: Artifact, trust_remote_code: bool) -> Encoder:
    """The encoder that a teacher's training began with, without adapter or projection."""
    contract = Contract.read(teacher.path)
    return create(
        contract.base,
        attention=contract.attention,
        pooling=contract.pooling,
        latents=None if contract.latents is None else contract.latents.model_dump(),
        echo=contract.echo,
        append_eos=contract.append_eos,
        prompts=contract.prompts.model_dump(),
        pool_prompt=contract.pool_prompt,
        max_tokens=contract.max_tokens,
        precision=contract.precision,
        space=f"{contract.space}-base",
        trust_remote_code=trust_remote_code,
    )


def _begun(student: Artifact, corpus: Artifact) -> Encoder:
    """What the student was made of, without the projection that training begins with."""
    made_by = student.manifest["made_by"]["section"]
    fields = {name: made_by[name] for name in Student.model_fields if name in made_by}
    section = validated(Student, {**fields, "phases": [made_by["phase"]]}, str(student.path))
    files = CorpusFiles.read(corpus)
    return bare(section, files, seed=made_by["seed"], space=f"{student.path.name}-base")


def _losses(artifact: Artifact) -> list[tuple[int, float]]:
    file = artifact.path / "metrics.jsonl"
    if not file.exists():
        return []
    figures = [json.loads(line) for line in file.open(encoding="utf-8")]
    return [(int(f["step"]), f["loss"]) for f in figures]


def hardware() -> str:
    """What figures of speed were measured on."""
    gpus = ray.cluster_resources().get("GPU", 0)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.machine()}, {psutil.cpu_count()} CPUs, {memory:.0f} GiB, "
        f"{gpus:.0f} GPUs, Python {platform.python_version()}"
    )
