"""Figures → verdict: whether a student may be released."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

METRIC = "ndcg@10"

SPEED = "texts_per_second"


@dataclass(frozen=True)
class Floors:
    """What must hold; see the recipe's release section."""

    mean_retention: float | None = None
    set_retention: float | None = None
    retention: Mapping[str, float] = field(default_factory=dict)
    asymmetric_retention: float | None = None
    ndcg: Mapping[str, float] = field(default_factory=dict)
    vectors: Mapping[str, float] = field(default_factory=dict)
    texts_per_second: float | None = None
    speedup: float | None = None
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
    kept = report["retention"]
    student, teacher = model_of(report, "student"), model_of(report, "teacher")
    yield from _below("mean retention", kept["mean"], floors.mean_retention)
    every = dict.fromkeys(report["sets"], floors.set_retention)
    for name, floor in {**every, **floors.retention}.items():
        yield from _below(f"retention on {name}", kept.get(name), floor)
    both = model_of(report, "asymmetric") or {"retention": {"mean": None}}
    yield from _below(
        "mean asymmetric retention", both["retention"]["mean"], floors.asymmetric_retention
    )
    for name, floor in floors.ndcg.items():
        measured = student["scores"].get(name, {}).get(METRIC)
        yield from _below(f"the student's nDCG@10 on {name}", measured, floor)
    for precision, floor in floors.vectors.items():
        what = f"the share of the student's nDCG@10 that {precision} vectors keep"
        yield from _below(what, _share_kept(student, precision), floor)
    fast, slow = student.get(SPEED), teacher.get(SPEED)
    yield from _below("the student's texts per second", fast, floors.texts_per_second)
    yield from _below(
        "the student's speed as a multiple of the teacher's",
        fast / slow if fast and slow else None,
        floors.speedup,
    )
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


def _below(what: str, measured: float | None, floor: float | None) -> Iterator[str]:
    if floor is None:
        return
    if measured is None:
        yield f"{what} should be at least {floor:.3f} and was not measured"
    elif measured < floor:
        yield f"{what} is {measured:.3f}, {floor - measured:.3f} below the floor of {floor:.3f}"


def _share_kept(student: Mapping[str, Any], precision: str) -> float | None:
    """The student's nDCG@10 at its full size over that of float32, in sums over the sets."""
    sums: dict[str, float] = {}
    for entries in student.get("vectors", {}).values():
        for entry in entries:
            if entry["dims"] == student["dims"]:
                name = entry["precision"]
                sums[name] = sums.get(name, 0.0) + entry[METRIC]
    whole = sums.get("float32")
    return sums[precision] / whole if whole and precision in sums else None


def model_of(report: Mapping[str, Any], role: str) -> Any:
    """The report's entry of a role; None when there is none."""
    return next((m for m in report["models"].values() if m["role"] == role), None)


def mean_ndcg(model: Mapping[str, Any]) -> float:
    scores = [scores[METRIC] for scores in model["scores"].values()]
    return sum(scores) / len(scores)
