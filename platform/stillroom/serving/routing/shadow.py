"""How far the student's answers are from what its teacher would have said, in production.

A share of the student's answers is encoded again by the teacher, after the client has its own.
In one space their cosine says how well they agree. In any, rank agreement does: both order the
same recent texts by their nearness to this one, and the orders are compared.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.contract import Role, Terms, cannot_share_index
from stillroom.serving.messages import Encoded, Load, Work
from stillroom.storage.atomic import written

log = logging.getLogger("ray.serve")

PROBES = 64  # recent texts that orders are compared on …

FEWEST_PROBES = 8  # … and how many make an order

RECENT = 0.02  # weight of the newest text in the running means

TEXTS = 8  # of one request, at most

BUCKETS = (-0.5, 0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1)


class ShadowOptions(BaseModel):
    """What is compared, and what is done with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    share: float = Field(0.01, gt=0, le=1)  # of the student's answers
    # Where texts that agree least are kept, a file for each release. Texts are your users': none
    # is written unless you say where.
    folder: str | None = None
    keep: PositiveInt = 1000  # texts in each file
    alert_cosine: float | None = Field(None, ge=-1, le=1)  # means below these show in /healthz,
    alert_rank: float | None = Field(None, ge=-1, le=1)  # … which stays 200: traffic goes on


@dataclass(frozen=True)
class Agreement:
    """Of one text; None where it cannot be told.

    Attributes:
        cosine: of both vectors. Spaces that differ have none.
        rank: Spearman's correlation of the two orders of the recent texts, in [-1, 1].
    """

    cosine: float | None
    rank: float | None

    @property
    def score(self) -> float | None:
        return self.rank if self.cosine is None else self.cosine


class Fidelity:
    """Compares one student's vectors with its teacher's, text by text."""

    def __init__(self, *, one_space: bool):
        self.one_space = one_space
        self.probes: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=PROBES)

    def compare(self, student_d: np.ndarray, teacher_e: np.ndarray) -> Agreement:
        """d and e are equal where the space is one."""
        student, teacher = unit(student_d), unit(teacher_e)
        rank = None
        if len(self.probes) >= FEWEST_PROBES:
            students, teachers = map(np.stack, zip(*self.probes, strict=True))
            rank = spearman(students @ student, teachers @ teacher)
        self.probes.append((student, teacher))
        return Agreement(float(student @ teacher) if self.one_space else None, rank)


def unit(vector: np.ndarray) -> np.ndarray:
    vector = vector.astype(np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the orders of two lists of n ≥ 2 numbers; equal numbers stand as they come."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (one, other)]
    n = len(one)
    return 1 - 6 * float(np.sum((ranks[0] - ranks[1]) ** 2)) / (n * (n**2 - 1))


class Disagreements:
    """The texts that agree least, on disk: JSON Lines with `text`, which a recipe's source of
    `format: files` reads as passages.

    Args:
        file: rewritten whole, by a rename, so that a reader never sees half of it. What it holds
            from before is kept.
        most: texts.
    """

    def __init__(self, file: Path, most: int):
        self.file, self.most = file, most
        self.scores: dict[str, float] = {}
        if file.exists():
            rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            self.scores = {row["text"]: row["agreement"] for row in rows}

    def add(self, agreements: Mapping[str, float]) -> None:
        """Text → its agreement; the least of all that were ever added stay."""
        merged = self.scores | dict(agreements)
        least = sorted(merged.items(), key=lambda item: item[1])[: self.most]
        if (kept := dict(least)) == self.scores:
            return
        self.scores = kept
        rows = (json.dumps({"text": text, "agreement": round(score, 6)}) for text, score in least)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written(self.file) as file:
            file.writelines(f"{row}\n" for row in rows)


@dataclass(frozen=True)
class Compared:
    """What a router is told of one answer, and of all those before it."""

    agreements: list[Agreement]
    mean_cosine: float | None
    mean_rank: float | None


@serve.deployment
class Shadow:
    """Compares one release's student with its teacher. There is one of it, and it takes one
    answer at a time: it never has more than one request with the teacher.

    Args:
        teacher: the teacher's replicas.
        teacher_contract, student_contract: to know the space and the sizes.
        file: where the texts that agree least are kept; None: no text is.
        most: how many of them.
    """

    def __init__(
        self,
        teacher: DeploymentHandle,
        teacher_contract: Terms,
        student_contract: Terms,
        file: str | None,
        most: int,
    ):
        self.teacher, self.contract = teacher, teacher_contract
        self.one_space = cannot_share_index(teacher_contract, student_contract) is None
        self.kept = None if file is None else Disagreements(Path(file), most)
        self.fidelities: dict[tuple[Role, int], Fidelity] = {}
        self.means: dict[str, float] = {}

    async def compare(self, work: Work, student_nd: np.ndarray) -> Compared:
        """The student's n answers to `work` against the teacher's."""
        shared = self.one_space and work.dims in self.contract.dims
        dims = work.dims if shared else self.contract.dims[0]
        told: Encoded = await self.teacher.encode.remote(replace(work, dims=dims))
        # Sizes and roles have other neighbours: their orders are not compared.
        fidelity = self.fidelities.setdefault((work.role, work.dims), Fidelity(one_space=shared))
        agreements = [
            fidelity.compare(mine, theirs)
            for mine, theirs in zip(student_nd, told.vectors, strict=True)
        ]
        for agreement in agreements:
            self._remember("cosine", agreement.cosine)
            self._remember("rank", agreement.rank)
        if self.kept is not None:
            scores = zip(work.texts, (agreement.score for agreement in agreements), strict=True)
            self.kept.add({text: score for text, score in scores if score is not None})
        return Compared(agreements, self.means.get("cosine"), self.means.get("rank"))

    def _remember(self, name: str, value: float | None) -> None:
        if value is not None:
            mean = self.means.setdefault(name, value)
            self.means[name] = mean + RECENT * (value - mean)


class ShadowMetrics:
    """What the samplers of one router count."""

    def __init__(self, registry: CollectorRegistry):
        self.answers = Counter(
            "stillroom_shadow_answers",
            "Sampled answers of a student: compared, dropped as the teacher was busy, or failed",
            ["model", "outcome"],
            registry=registry,
        )
        self.cosine, self.rank = (
            Histogram(
                f"stillroom_shadow_{name}", about, ["model"], buckets=BUCKETS, registry=registry
            )
            for name, about in (
                ("cosine", "Cosine of the student's and the teacher's vector of a text"),
                ("rank", "Rank correlation of their orders of recent texts around a text"),
            )
        )


class Sampler:
    """One router's way to a Shadow: picks answers, and never makes anyone wait.

    Args:
        model: the student.
        teacher: by name, as loads have it.
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
        self.last: Compared | None = None

    def offer(self, work: Work, vectors: np.ndarray, teacher: Load) -> None:
        """Compare an answer some time later; or don't, when the teacher has anything else to do."""
        if work.token_ids is not None or random.random() >= self.options.share:
            return
        if self.task is not None or teacher.ongoing or not teacher.ready:
            self._count("dropped")
            return
        some = replace(work, texts=work.texts[:TEXTS], trace=None)
        self.task = asyncio.create_task(self._compare(some, vectors[:TEXTS]))

    async def _compare(self, work: Work, vectors: np.ndarray) -> None:
        try:
            self.last = await self.shadow.compare.remote(work, vectors)
        except BackPressureError:
            self._count("dropped")
        except Exception:
            log.exception("an answer of %s could not be compared", self.model)
            self._count("failed")
        else:
            self._count("compared")
            for agreement in self.last.agreements:
                if agreement.cosine is not None:
                    self.metrics.cosine.labels(self.model).observe(agreement.cosine)
                if agreement.rank is not None:
                    self.metrics.rank.labels(self.model).observe(agreement.rank)
        finally:
            self.task = None

    def _count(self, outcome: str) -> None:
        self.metrics.answers.labels(self.model, outcome).inc()

    def health(self) -> dict[str, Any]:
        """The means of late, and whether one is below its threshold."""
        cosine, rank = (self.last.mean_cosine, self.last.mean_rank) if self.last else (None, None)
        pairs = ((cosine, self.options.alert_cosine), (rank, self.options.alert_rank))
        below = any(m is not None and least is not None and m < least for m, least in pairs)
        return {"cosine": cosine, "rank": rank, "alert": below}
