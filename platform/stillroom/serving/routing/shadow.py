"""Compares a sample of the student's answers with its teacher's, in production.

A share of the student's answers is encoded again by the teacher, after the client has received its
answer. See agreement.py for how they are compared.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.contract import BaseContract, Role, index_conflict
from stillroom.serving.messages import EncodeJob, EncodeResult, EncoderLoad
from stillroom.serving.routing.agreement import Agreement, AgreementTracker
from stillroom.serving.routing.disagreement_file import DisagreementFile

log = logging.getLogger("ray.serve")
NEWEST_WEIGHT = 0.02  # of the newest text in the running means
MAX_TEXTS = 8  # of one request
BUCKETS = (-0.5, 0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1)


class ShadowOptions(BaseModel):
    """Which answers are compared, and what happens with the results."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    share: float = Field(0.01, gt=0, le=1)  # of the student's answers
    # Where the texts with the least agreement are kept, a file for each release. Texts are your
    # users': none is written unless you name a folder.
    folder: str | None = None
    max_texts: PositiveInt = 1000  # in each file
    # A mean below one of these shows as an alert in /healthz; its status stays 200.
    alert_below_cosine: float | None = Field(None, ge=-1, le=1)
    alert_below_rank_correlation: float | None = Field(None, ge=-1, le=1)


@dataclass(frozen=True)
class ShadowResult:
    """Agreement on one answer's texts, and the running means over all answers so far."""

    agreements: list[Agreement]
    mean_cosine: float | None
    mean_rank_correlation: float | None


@serve.deployment
class Shadow:
    """Compares one release's student with its teacher.

    It has one replica, which handles one answer at a time, so the teacher never has more than one
    of its requests.

    Args:
        teacher: the teacher's replicas.
        teacher_contract, student_contract: give their spaces and vector sizes.
        file: where the texts with the least agreement are kept; None: nowhere.
        max_texts: in that file.
    """

    def __init__(
        self,
        teacher: DeploymentHandle,
        teacher_contract: BaseContract,
        student_contract: BaseContract,
        file: str | None,
        max_texts: int,
    ):
        self.teacher, self.teacher_contract = teacher, teacher_contract
        self.same_space = index_conflict(teacher_contract, student_contract) is None
        self.disagreements = None if file is None else DisagreementFile(Path(file), max_texts)
        self.trackers: dict[tuple[Role, int], AgreementTracker] = {}
        self.means: dict[str, float] = {}

    async def compare(self, job: EncodeJob, student_nd: np.ndarray) -> ShadowResult:
        """Compare the student's n vectors for a job with the teacher's."""
        same_space = self.same_space and job.dims in self.teacher_contract.dims
        dims = job.dims if same_space else self.teacher_contract.dims[0]
        result: EncodeResult = await self.teacher.encode.remote(replace(job, dims=dims))
        role, texts = job.request.role, job.request.texts
        # Vectors of other sizes or roles have other neighbours: their orders are not compared.
        tracker = self.trackers.setdefault(
            (role, job.dims), AgreementTracker(same_space=same_space)
        )
        agreements = [
            tracker.compare(student_d, teacher_e)
            for student_d, teacher_e in zip(student_nd, result.vectors, strict=True)
        ]
        for agreement in agreements:
            self._update_mean("cosine", agreement.cosine)
            self._update_mean("rank_correlation", agreement.rank_correlation)
        if self.disagreements is not None:
            scores = zip(texts, (agreement.score for agreement in agreements), strict=True)
            self.disagreements.add({text: score for text, score in scores if score is not None})
        return ShadowResult(
            agreements, self.means.get("cosine"), self.means.get("rank_correlation")
        )

    def _update_mean(self, name: str, value: float | None) -> None:
        if value is not None:
            mean = self.means.setdefault(name, value)
            self.means[name] = mean + NEWEST_WEIGHT * (value - mean)


class ShadowMetrics:
    """Counts of one router's samplers."""

    def __init__(self, registry: CollectorRegistry):
        self.comparisons = Counter(
            "stillroom_shadow_comparisons",
            "Sampled answers of a student: compared, dropped while the teacher was busy, or failed",
            ["model", "outcome"],
            registry=registry,
        )
        self.cosine, self.rank_correlation = (
            Histogram(
                f"stillroom_shadow_{name}", about, ["model"], buckets=BUCKETS, registry=registry
            )
            for name, about in (
                ("cosine", "Cosine of the student's and the teacher's vector of a text"),
                (
                    "rank_correlation",
                    "Rank correlation of the student's and the teacher's order of recent texts",
                ),
            )
        )


class ShadowSampler:
    """Samples one router's answers for a Shadow, without delaying requests.

    Args:
        model: the student.
        teacher: its name among the encoders' loads.
    """

    def __init__(
        self,
        model: str,
        teacher: str,
        shadow: DeploymentHandle,
        options: ShadowOptions,
        metrics: ShadowMetrics,
    ):
        self.model, self.teacher = model, teacher
        self.shadow, self.options, self.metrics = shadow, options, metrics
        self.task: asyncio.Task[None] | None = None
        self.last: ShadowResult | None = None

    def maybe_compare(self, job: EncodeJob, vectors: np.ndarray, teacher_load: EncoderLoad) -> None:
        """Start comparing an answer if it is sampled and the teacher is idle."""
        request = job.request
        if request.token_ids is not None or random.random() >= self.options.share:
            return
        if self.task is not None or teacher_load.ongoing or not teacher_load.ready:
            self._count("dropped")
            return
        first_texts = replace(request, texts=request.texts[:MAX_TEXTS])
        job = replace(job, request=first_texts, trace=None)
        self.task = asyncio.create_task(self._compare(job, vectors[:MAX_TEXTS]))

    async def _compare(self, job: EncodeJob, vectors: np.ndarray) -> None:
        try:
            self.last = await self.shadow.compare.remote(job, vectors)
        except BackPressureError:
            self._count("dropped")
        except Exception:
            log.exception("an answer of %s could not be compared", self.model)
            self._count("failed")
        else:
            self._count("compared")
            self._observe(self.last.agreements)
        finally:
            self.task = None

    def _observe(self, agreements: list[Agreement]) -> None:
        for agreement in agreements:
            if agreement.cosine is not None:
                self.metrics.cosine.labels(self.model).observe(agreement.cosine)
            if agreement.rank_correlation is not None:
                self.metrics.rank_correlation.labels(self.model).observe(agreement.rank_correlation)

    def _count(self, outcome: str) -> None:
        self.metrics.comparisons.labels(self.model, outcome).inc()

    def health(self) -> dict[str, Any]:
        """The running means, and whether one is below its threshold, for GET /healthz."""
        cosine = self.last.mean_cosine if self.last else None
        rank_correlation = self.last.mean_rank_correlation if self.last else None
        thresholds = (
            (cosine, self.options.alert_below_cosine),
            (rank_correlation, self.options.alert_below_rank_correlation),
        )
        alert = any(
            mean is not None and threshold is not None and mean < threshold
            for mean, threshold in thresholds
        )
        return {"cosine": cosine, "rank_correlation": rank_correlation, "alert": alert}
