"""A report as a table, and as one HTML page that needs nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from stillroom.measure.gate import mean_ndcg, model_of

PAGE = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.measure", "."), autoescape=True, trim_blocks=True,
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


def render(report: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """The page.

    Args:
        extras: `name`, `hardware`, `losses` (model → [(step, loss)]) and `negatives`, the
            counts and examples that mining wrote, or None.
    """
    header, *rows = table(report)
    plots = [
        line_plot(f"{name}: training loss", losses)
        for name, losses in extras["losses"].items()
        if len(losses) > 1
    ]
    return PAGE.get_template("report.html").render(
        name=extras["name"],
        hardware=extras["hardware"],
        negatives=extras["negatives"],
        score_plots=[
            histogram(f"Scores of {name}", extras["negatives"]["scores"]["edges"], counts)
            for name, counts in (extras["negatives"] or {"scores": {}})["scores"].items()
            if name != "edges"
        ],
        header=header,
        rows=rows,
        sets=report["sets"],
        retention=report["retention"],
        findings=list(findings(report)),
        bars={name: bars(report, name) for name in report["sets"]},
        plots=plots,
        width=WIDTH,
        height=HEIGHT,
        margin=MARGIN,
    )


def findings(report: Mapping[str, Any]) -> Iterator[str]:
    """What the figures say, in sentences; what was not measured is left out."""
    named = {
        "teacher": "the teacher",
        "student": "the student",
        "teacher_base": "the teacher before training",
        "student_base": "the student before training",
        "bm25": "BM25",
    }
    for role, rival in (
        ("teacher", "teacher_base"),
        ("teacher", "student_base"),
        ("student", "student_base"),
        ("student", "bm25"),
        ("student", "teacher"),
    ):
        one, other = model_of(report, role), model_of(report, rival)
        if one is not None and other is not None:
            difference = mean_ndcg(one) - mean_ndcg(other)
            verb = "is above" if difference > 0 else "is below" if difference < 0 else "equals"
            yield (
                f"{named[role].capitalize()} {verb} {named[rival]}: nDCG@10 "
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
