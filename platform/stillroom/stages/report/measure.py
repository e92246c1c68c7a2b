"""Ray tasks that measure models: quality on the evaluation sets, calibration, and speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
import torch

from stillroom.cluster.capacity import ray_options
from stillroom.cluster.progress import Progress, run_with_progress
from stillroom.config.scale import ActorPool
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.api_encoder import ApiEncoder
from stillroom.encoders.interface import Embedder, truncate_vectors
from stillroom.encoders.vectors.quantise import Calibration
from stillroom.evaluation.encode_progress import OnTexts, ProgressEmbedder
from stillroom.evaluation.evaluate import (
    EncodedSets,
    encode_sets,
    entry_of_scores,
    score_queries,
)
from stillroom.evaluation.speed import Speed, texts_per_round, time_in_turns
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets, read_guards
from stillroom.stages.report.models import ModelSource
from stillroom.storage.artifacts import Artifact

CALIBRATION_PASSAGES = 1024  # of the corpus
MEMORY_SHARE = 0.5  # of free memory that models may take which are timed in turns


@dataclass(frozen=True)
class MeasuredModel:
    """A model's entry in the report, and other results of its measurement.

    Attributes:
        ndcg: set → nDCG@10 of each query, guards included.
        elsewhere: its entry on the guards; None without any.
        encoded: the evaluation sets' and guards' vectors, only of teacher, student, and the student
            before training.
        calibrations: dims → ranges of the vectors' values, only of the student.
        weight_bytes: of its weights in memory.
    """

    entry: dict[str, Any]
    ndcg: dict[str, np.ndarray]
    elsewhere: dict[str, Any] | None
    encoded: EncodedSets | None
    calibrations: dict[int, Calibration] | None
    weight_bytes: int


def texts_to_encode(sets: Mapping[str, EvaluationSet]) -> int:
    """Number of texts that a model encodes: judged queries, and passages."""
    return sum(len(s.judged_queries()) + len(s.passages) for s in sets.values())


def measure_models(
    models: Mapping[str, ModelSource], corpus: Artifact, scale: ActorPool, progress: Progress
) -> dict[str, MeasuredModel]:
    """Measures the models one after the other: each may need all resources of the scale.

    The entries' speed is the median over rounds in which all models are timed in turns.
    """
    options = ray_options(scale)
    measured = {
        name: run_with_progress(_measure, model, corpus, options=options, progress=progress)
        for name, model in models.items()
    }
    timed = {
        name: _TimedModel(models[name], model.entry["texts_per_second"], model.weight_bytes)
        for name, model in measured.items()
    }
    speeds = ray.get(ray.remote(**options)(_time_models).remote(timed, corpus))
    for name, model in measured.items():
        model.entry["texts_per_second"] = speeds[name].texts_per_second
        model.entry["texts_per_second_spread"] = speeds[name].spread
    return measured


def measure_api(
    api: ApiEncoder,
    sets: Mapping[str, EvaluationSet],
    guards: Mapping[str, EvaluationSet],
    progress: Progress,
) -> MeasuredModel:
    """Measures a teacher behind an API, from this process, which has its cache.

    Reports no speed: an API's response time says nothing about its model.
    """
    measured = _measured("teacher", ProgressEmbedder(api, progress.add), sets, guards)
    measured.entry.update({"texts_per_second": None, "texts_per_second_spread": None})
    return measured


def _measured(
    role: str,
    encoder: Embedder,
    sets: Mapping[str, EvaluationSet],
    guards: Mapping[str, EvaluationSet],
) -> MeasuredModel:
    encoded = encode_sets(encoder, role, {**sets, **guards})
    scores = score_queries(encoded, {**sets, **guards})

    def entry(of: Mapping[str, EvaluationSet]) -> dict[str, Any]:
        parts = {name: scores[name] for name in of}
        return entry_of_scores(role, encoder.parameters_total, encoded, parts)

    return MeasuredModel(
        entry(sets),
        {name: by_query["ndcg@10"] for name, by_query in scores.items()},
        entry(guards) if guards else None,
        encoded if role in ("teacher", "student", "student_base") else None,
        calibrations=None,
        weight_bytes=0,
    )


def _measure(model: ModelSource, corpus: Artifact, on_texts: OnTexts) -> MeasuredModel:
    encoder = _on_assigned_device(model.load())
    guards = read_guards(corpus) if model.measured_elsewhere else {}
    measured = _measured(
        model.role, ProgressEmbedder(encoder, on_texts), read_evaluation_sets(corpus), guards
    )
    return dataclasses.replace(
        measured,
        calibrations=_calibrate(encoder, corpus) if model.role == "student" else None,
        weight_bytes=_weight_bytes(encoder),
    )


def _calibrate(encoder: Embedder, corpus: Artifact) -> dict[int, Calibration]:
    """Ranges of the student's vectors of the corpus's passages, at each of its sizes."""
    passages = CorpusData.open(corpus).passages
    rows = evenly_spaced(len(passages), CALIBRATION_PASSAGES)
    vectors = encoder.encode([passages[row] for row in rows], "passage")
    normalise = encoder.contract.normalise
    return {
        dims: Calibration.fit(truncate_vectors(vectors, dims, normalise))
        for dims in encoder.contract.dims
    }


def _weight_bytes(encoder: Embedder) -> int:
    if isinstance(encoder, torch.nn.Module):
        return sum(weight.nbytes for weight in encoder.parameters())
    return 4 * encoder.parameters_total


@dataclass(frozen=True)
class _TimedModel:
    """The fields of a `MeasuredModel` that `_time_models` needs."""

    source: ModelSource
    texts_per_second: float  # about
    weight_bytes: int


def _time_models(models: Mapping[str, _TimedModel], corpus: Artifact) -> dict[str, Speed]:
    """Times the models in turns, or one by one where they do not fit into memory together."""
    sets = read_evaluation_sets(corpus)
    weight_bytes = {name: model.weight_bytes for name, model in models.items()}
    speeds: dict[str, Speed] = {}
    for group in timing_groups(weight_bytes, _free_bytes()):
        speeds |= time_in_turns({name: _round(models[name], sets) for name in group})
    return speeds


def timing_groups(weight_bytes: Mapping[str, int], free_bytes: int) -> list[list[str]]:
    """Models to time in turns: all, or each alone where all take too much memory."""
    if sum(weight_bytes.values()) <= MEMORY_SHARE * free_bytes:
        return [list(weight_bytes)]
    return [[name] for name in weight_bytes]


def _round(model: _TimedModel, sets: Mapping[str, EvaluationSet]) -> Callable[[], int]:
    """A function that encodes a sample of all sets' passages, under the prompts of the report."""
    encoder = _on_assigned_device(model.source.load())
    samples = sample_passages(sets, texts_per_round(model.texts_per_second))

    def encode() -> int:
        encode_sets(encoder, model.source.role, samples)
        return sum(len(sample.passages) for sample in samples.values())

    return encode


def sample_passages(sets: Mapping[str, EvaluationSet], count: int) -> dict[str, EvaluationSet]:
    """About `count` passages, evenly spaced over all sets, as sets without queries."""
    total = sum(len(dataset.passages) for dataset in sets.values())
    rows = set(evenly_spaced(total, count).tolist())
    samples, start = {}, 0
    for name, dataset in sets.items():
        ids = [id for row, id in enumerate(dataset.passages, start) if row in rows]
        start += len(dataset.passages)
        if ids:
            passages = {id: dataset.passages[id] for id in ids}
            samples[name] = EvaluationSet(passages, {}, {}, dataset.prompts)
    return samples


def _free_bytes() -> int:
    """Free memory: of this machine, and of the GPU where the task has one."""
    free = int(psutil.virtual_memory().available)
    return min(free, torch.cuda.mem_get_info()[0]) if ray.get_gpu_ids() else free


def _on_assigned_device(encoder: Embedder) -> Embedder:
    """The encoder on the CPUs or the GPU that this task was given."""
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"])))
    return encoder.to("cuda" if ray.get_gpu_ids() else "cpu")
