"""Teacher, student, their bases and BM25 on the same sets: quality, retention, speed, size."""

import functools
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config.recipe import Report as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Contract
from stillroom.encoders.embedder import Embedder
from stillroom.encoders.encode import Encoder
from stillroom.encoders.store import create, load
from stillroom.measure.model import measure, measure_bm25, retention
from stillroom.measure.render import render
from stillroom.stages.api import remote_of
from stillroom.stages.corpus import evaluation_sets


def report(
    *,
    section: Section,
    corpus: Artifact,
    teacher: Artifact,
    negatives: Artifact,
    student: Artifact,
    scale: Scale,
    out: Draft,
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes report.json and report.html; returns the former.

    Args:
        trusted: which of teacher and student may run code that they bring with them.
    """
    code = {role: role in trusted for role in ("teacher", "student")}
    remote = remote_of(teacher.path, scale.teacher_api, out.store)
    models: dict[str, tuple[str, Callable[[], Embedder]]] = {
        name: (name, functools.partial(load, of.path, trust_remote_code=code[name]))
        for name, of in (("teacher", teacher), ("student", student))
        if name == "student" or remote is None
    }
    if section.bases:
        layers = student.manifest["made_by"]["section"]["layers"]
        if teacher.manifest["made_by"]["section"]["phase"] is not None:
            bare = functools.partial(_untrained, teacher.path, None, code["teacher"])
            models["teacher before training"] = ("teacher_base", bare)
        bare = functools.partial(_untrained, student.path, layers, code["student"])
        models["student before training"] = ("student_base", bare)
    # One after the other: a speed measured beside another model's would be the wrong one.
    task = ray.remote(num_cpus=scale.report.cpus, num_gpus=scale.report.gpus)(_measured)
    found = {
        name: ray.get(task.remote(make, role, corpus)) for name, (role, make) in models.items()
    }
    sets = evaluation_sets(corpus)
    if remote is not None:
        # Asked from here, where its answers are kept; which says nothing of its speed.
        found["teacher"] = {**measure(remote, "teacher", sets), "texts_per_second": None}
    if section.bm25:
        found["BM25"] = measure_bm25(sets)
    measured = {
        "sets": {
            name: {"queries": len(kept.qrels), "passages": len(kept.passages)}
            for name, kept in sets.items()
        },
        "models": found,
        "retention": retention(found["teacher"], found["student"]),
        "hardware": hardware(),
    }
    atomic_json(out.path / "report.json", measured)
    extras = {
        "name": out.path.name,
        "hardware": measured["hardware"],
        "losses": {"teacher": _losses(teacher), "student": _losses(student)},
        "negatives": json.loads((negatives.path / "counts.json").read_text()),
    }
    (out.path / "report.html").write_text(render(measured, extras), encoding="utf-8")
    return measured


def _measured(make: Callable[[], Embedder], role: str, corpus: Artifact) -> dict[str, Any]:
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"])))
    encoder = make().to("cuda" if ray.get_gpu_ids() else "cpu")
    return measure(encoder, role, evaluation_sets(corpus))


def _untrained(folder: Path, layers: list[int] | None, trust_remote_code: bool) -> Encoder:
    """The encoder that a folder's training began with, without adapter or projection."""
    contract = Contract.read(folder)
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
        layers=layers,
        trust_remote_code=trust_remote_code,
    )


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
