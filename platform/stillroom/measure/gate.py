"""Figures → verdict: whether a student may be released."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Floors:
    """What must hold; see the recipe's release section."""

    mean_retention: float | None = None
    set_retention: float | None = None
    ndcg: Mapping[str, float] | None = None
    student_over_base: bool = False
    student_over_bm25: bool = False


@dataclass(frozen=True)
class Verdict:
    passed: bool
    failures: tuple[str, ...]


def judge(report: Mapping[str, Any], floors: Floors) -> Verdict:
    """Holds a report against the floors. What was not measured is a failure too."""
    failures = tuple(_failures(report, floors))
    return Verdict(not failures, failures)


def _failures(report: Mapping[str, Any], floors: Floors) -> Iterator[str]:
    retention = report["retention"]
    if floors.mean_retention is not None:
        yield from _below("mean retention", retention["mean"], floors.mean_retention)
    if floors.set_retention is not None:
        for name in report["sets"]:
            yield from _below(f"retention on {name}", retention[name], floors.set_retention)
    student = model_of(report, "student")
    for name, floor in (floors.ndcg or {}).items():
        measured = student["scores"].get(name, {}).get(METRIC)
        yield from _below(f"the student's nDCG@10 on {name}", measured, floor)
    for asked, role, other in (
        (floors.student_over_base, "student_base", "its own base"),
        (floors.student_over_bm25, "bm25", "BM25"),
    ):
        if not asked:
            continue
        rival = model_of(report, role)
        if rival is None:
            yield f"the student should beat {other}, which was not measured"
        elif mean_ndcg(student) <= mean_ndcg(rival):
            yield (
                f"the student's mean nDCG@10 of {mean_ndcg(student):.3f} does not beat "
                f"{other}'s {mean_ndcg(rival):.3f}"
            )


def _below(what: str, measured: float | None, floor: float) -> Iterator[str]:
    if measured is None:
        yield f"{what} should be at least {floor:.3f} and was not measured"
    elif measured < floor:
        yield f"{what} is {measured:.3f}, {floor - measured:.3f} below the floor of {floor:.3f}"


def model_of(report: Mapping[str, Any], role: str) -> Any:
    """The report's entry of a role; None when there is none."""
    return next((m for m in report["models"].values() if m["role"] == role), None)


def mean_ndcg(model: Mapping[str, Any]) -> float:
    scores = [scores[METRIC] for scores in model["scores"].values()]
    return sum(scores) / len(scores)
