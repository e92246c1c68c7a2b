"""A report as a table, and as one HTML page that needs nothing else."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from stillroom.encoders.vectors.quantise import PRECISIONS, RESCORED
from stillroom.evaluation.gate import mean_ndcg, model_of

PAGE = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.reports", "templates"), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip

METRICS = {"ndcg@10": "nDCG@10", "recall@100": "Recall@100", "mrr@10": "MRR@10"}

WIDTH, HEIGHT, MARGIN = 560, 200, 40  # of a plot, in SVG units


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text, the header first: a model each, best nDCG@10 on top."""
    sets = list(report["sets"])
    columns = [(name, metric) for name in sets for metric in METRICS]
    header = ["model", "parameters", "dims", "texts/s"]
    header += [
        METRICS[metric] if len(sets) == 1 else f"{name} {METRICS[metric]}"
        for name, metric in columns
    ]
    models = sorted(report["models"].items(), key=lambda item: -mean_ndcg(item[1]))
    return [header] + [
        [
            name,
            _count(model["parameters"]),
            str(model["dims"] or "–"),
            "–" if model["texts_per_second"] is None else f"{model['texts_per_second']:,.0f}",
            *(f"{model['scores'][of][metric]:.3f}" for of, metric in columns),
        ]
        for name, model in models
    ]


def mean_small(vectors: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The entries with their nDCG@10 alone, as means over the sets, in the sets' order."""
    described = ("precision", "dims", "trained", "bytes", "rescored_bytes")
    return [
        {
            **{key: entries[0][key] for key in described},
            "ndcg@10": sum(entry["ndcg@10"] for entry in entries) / len(entries),
        }
        for entries in zip(*vectors.values(), strict=True)
    ]


def small_table(vectors: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text, the header first: a size and precision each, as `measure_small` has them."""
    sets = list(vectors)
    several = len(sets) > 1
    header = ["dims", "precision", "bytes"]
    header += [f"{name} nDCG@10" for name in sets] if several else ["nDCG@10", "Recall@100"]
    header += ["mean"] if several else []
    means = mean_small(vectors)
    whole = means[0]["ndcg@10"]
    rows = [[*header, "of float32"]]
    for mean, *entries in zip(means, *vectors.values(), strict=True):
        scores = [entry["ndcg@10"] for entry in entries]
        scores.append(mean["ndcg@10"] if several else entries[0]["recall@100"])
        rows.append(
            [
                f"{mean['dims']:,}" + ("" if mean["trained"] else " (not trained)"),
                mean["precision"],
                f"{mean['bytes']:,}"
                + (f" + {mean['rescored_bytes']:,}" if mean["rescored_bytes"] else ""),
                *(f"{score:.3f}" for score in scores),
                f"{mean['ndcg@10'] / whole:.1%}" if whole else "–",
            ]
        )
    return rows


def render(report: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """The page.

    Args:
        extras: `name`, `hardware`, `losses` (model → [(step, loss)]) and `negatives`, the
            counts and examples that mining wrote, or None.
    """
    plots = [
        line_plot(f"{name}: training loss", losses)
        for name, losses in extras["losses"].items()
        if len(losses) > 1
    ]
    retained = {
        name: model["retention"]
        for name, model in report["models"].items()
        if model["role"] == "asymmetric"
    }
    return PAGE.get_template("report.html").render(
        name=extras["name"],
        hardware=extras["hardware"],
        negatives=extras["negatives"],
        score_plots=[
            histogram(f"Scores of {name}", extras["negatives"]["scores"]["edges"], counts)
            for name, counts in (extras["negatives"] or {"scores": {}})["scores"].items()
            if name != "edges"
        ],
        retention=report["retention"],
        retained={"student": report["retention"], **retained},
        findings=list(findings(report)),
        plots=plots,
        height=HEIGHT,
        margin=MARGIN,
        **_shared(report),
    )


def evaluation_page(report: Mapping[str, Any], name: str) -> str:
    """The page of what `stillroom evaluate` measured."""
    return PAGE.get_template("evaluate.html").render(name=name, **_shared(report))


def _shared(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts that both pages have are told."""
    header, *rows = table(report)
    return {
        "sets": report["sets"],
        "header": header,
        "rows": rows,
        "bars": {name: bars(report, name) for name in report["sets"]},
        "small_vectors": {
            name: small_vectors(model["vectors"])
            for name, model in report["models"].items()
            if "vectors" in model
        },
        "rescored": RESCORED,
        "width": WIDTH,
    }


def findings(report: Mapping[str, Any]) -> Iterator[str]:
    """What the figures say, in sentences; what was not measured is left out."""
    named = {
        "teacher": "the teacher",
        "student": "the student",
        "teacher_base": "the teacher before training",
        "student_base": "the student before training",
        "bm25": "BM25",
        "asymmetric": "the student, asking among the teacher's passages,",
    }
    for role, rival in (
        ("teacher", "teacher_base"),
        ("teacher", "student_base"),
        ("student", "student_base"),
        ("student", "bm25"),
        ("student", "teacher"),
        ("asymmetric", "teacher"),
        ("asymmetric", "student"),
    ):
        one, other = model_of(report, role), model_of(report, rival)
        if one is not None and other is not None:
            difference = mean_ndcg(one) - mean_ndcg(other)
            verb = "is above" if difference > 0 else "is below" if difference < 0 else "equals"
            yield (
                f"{named[role][0].upper()}{named[role][1:]} {verb} {named[rival]}: nDCG@10 "
                f"{mean_ndcg(one):.3f} against {mean_ndcg(other):.3f} ({difference:+.3f})."
            )


def bars(report: Mapping[str, Any], name: str) -> list[tuple[str, float]]:
    """(model, nDCG@10) on a set, best first."""
    found = [(model, m["scores"][name]["ndcg@10"]) for model, m in report["models"].items()]
    return sorted(found, key=lambda bar: -bar[1])


@dataclass(frozen=True)
class Plot:
    """A line in an SVG's units, and the labels of its axes' ends."""

    title: str
    points: str
    left: str
    right: str
    bottom: str
    top: str


def line_plot(title: str, curve: Sequence[tuple[int, float]]) -> Plot:
    """A curve of (step, value), scaled to the plot."""
    steps, values = zip(*curve, strict=True)
    low, high = min(values), max(values)
    across = (WIDTH - 2 * MARGIN) / max(1, steps[-1] - steps[0])
    up = (HEIGHT - 2 * MARGIN) / ((high - low) or 1.0)
    points = " ".join(
        f"{MARGIN + (step - steps[0]) * across:.1f},{HEIGHT - MARGIN - (value - low) * up:.1f}"
        for step, value in curve
    )
    return Plot(title, points, f"{steps[0]}", f"{steps[-1]}", f"{low:.3g}", f"{high:.3g}")


@dataclass(frozen=True)
class Curve:
    """Points in an SVG's units, as (x, y, label), in the order of x."""

    name: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Scatter:
    """Curves in a frame, and the ticks of its axes as (place, label)."""

    curves: list[Curve]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    left: float = MARGIN
    right: float = WIDTH - 130  # names stand beside it
    top: float = 12
    height: float = 280

    @property
    def bottom(self) -> float:
        return self.height - 24


@dataclass(frozen=True)
class SmallVectors:
    """A model's small vectors, for the page."""

    header: list[str]
    rows: list[list[str]]
    plot: Scatter
    sizes: str


def small_vectors(vectors: Mapping[str, Any]) -> SmallVectors:
    """What `measure_small` found, as a table and a plot of quality against bytes."""
    header, *rows = small_table(vectors)
    means = mean_small(vectors)
    sizes = sorted({mean["dims"] for mean in means})
    listed = ", ".join(f"{size:,}" for size in sizes) if len(sizes) > 1 else ""
    return SmallVectors(header, rows, _scatter(means), listed)


def _scatter(means: Sequence[Mapping[str, Any]]) -> Scatter:
    frame = Scatter([], [], [])
    ranks = [math.log2(mean["bytes"]) for mean in means]
    first, last = math.floor(min(ranks)), math.ceil(max(ranks))
    scores = [mean["ndcg@10"] for mean in means]
    low, high = math.floor(20 * min(scores)) / 20, math.ceil(20 * max(scores)) / 20

    def x(size: float) -> float:
        return round(frame.left + (size - first) * (frame.right - frame.left) / (last - first), 1)

    def y(score: float) -> float:
        share = (score - low) / ((high - low) or 1.0)
        return round(frame.bottom - share * (frame.bottom - frame.top), 1)

    points: dict[str, list[tuple[float, float, str]]] = {}
    for mean, rank in sorted(zip(means, ranks, strict=True), key=lambda pair: pair[1]):
        label = f"{mean['precision']}, {mean['dims']:,} dims: {mean['ndcg@10']:.3f}"
        points.setdefault(mean["precision"], []).append((x(rank), y(mean["ndcg@10"]), label))
    order = [precision for precision in PRECISIONS if precision in points]
    ticks = range(round(20 * low), round(20 * high) + 1)
    return Scatter(
        [Curve(name, points[name]) for name in order],
        [(x(rank), f"{2**rank:,}") for rank in range(first, last + 1)],
        [(y(tick / 20), f"{tick / 20:.2f}") for tick in ticks],
    )


@dataclass(frozen=True)
class Histogram:
    """Bars in an SVG's units, as (left, top, width, height), and the ends of its axis."""

    title: str
    bars: list[tuple[float, float, float, float]]
    left: str
    right: str
    most: str


def histogram(title: str, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
    """Counts between edges of equal distance, scaled to the plot."""
    width = (WIDTH - 2 * MARGIN) / len(counts)
    up = (HEIGHT - 2 * MARGIN) / (max(counts) or 1)
    bars = [
        (MARGIN + i * width, HEIGHT - MARGIN - count * up, 0.9 * width, count * up)
        for i, count in enumerate(counts)
        if count
    ]
    return Histogram(title, bars, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", f"{max(counts):,}")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters else "–"
