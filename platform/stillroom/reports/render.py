"""The HTML pages of a run's report and of `stillroom evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.encoders.vectors.quantise import RESCORE_FACTOR
from stillroom.reports.page import render_page
from stillroom.reports.plots import (
    HEIGHT,
    MARGIN,
    WIDTH,
    ScatterPlot,
    histogram,
    line_plot,
    quality_plot,
    speed_plot,
)
from stillroom.reports.tables import (
    bm25_languages,
    comparisons,
    elsewhere_table,
    mean_over_sets,
    score_table,
    set_notes,
    small_vector_table,
    unreliable_speeds,
    verdict,
)
from stillroom.reports.tokenizer_fit import tokenizer_table, unknown_tokenizers


def render_report(report: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    """The page of a run's report.

    Args:
        report: the content of report.json.
        extras: `name`, `hardware`, `losses` (model → [(step, loss)]) and `negatives`, the counts
            and examples that mining wrote, or None.
    """
    negatives = extras["negatives"]
    scores = negatives["scores"] if negatives else {}
    asymmetric = {
        name: model["retention"]
        for name, model in report["models"].items()
        if model["role"] == "asymmetric"
    }
    return render_page(
        "report.html",
        name=extras["name"],
        hardware=extras["hardware"],
        negatives=negatives,
        score_plots=[
            histogram(f"Scores of {name}", scores["edges"], counts)
            for name, counts in scores.items()
            if name != "edges"
        ],
        retention=report["retention"],
        retention_by_model={"student": report["retention"], **asymmetric},
        verdict=verdict(report),
        elsewhere=elsewhere_table(report),
        speed_plot=speed_plot(report),
        guards=report.get("elsewhere", {}).get("sets", {}),
        comparisons=list(comparisons(report)),
        tokenizers=tokenizer_table(report["tokenizers"]),
        tokenizer_notes=list(unknown_tokenizers(report["tokenizers"])),
        plots=[
            line_plot(f"{name}: training loss", losses)
            for name, losses in extras["losses"].items()
            if len(losses) > 1
        ],
        height=HEIGHT,
        margin=MARGIN,
        **_model_values(report),
    )


def render_evaluation(report: Mapping[str, Any], name: str) -> str:
    """The page of `stillroom evaluate`: of one model's scores."""
    return render_page("evaluate.html", name=name, **_model_values(report))


def _model_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """The values of models.html and small_vectors.html, which are part of both pages."""
    header, *rows = score_table(report)
    return {
        "sets": report["sets"],
        "header": header,
        "rows": rows,
        "notes": [
            *filter(None, (unreliable_speeds(report), bm25_languages(report))),
            *set_notes(report),
        ],
        "bars": {name: _bars(report, name) for name in report["sets"]},
        "small_vectors": {
            name: _small_vectors(model["vectors"])
            for name, model in report["models"].items()
            if "vectors" in model
        },
        "rescore_factor": RESCORE_FACTOR,
        "width": WIDTH,
    }


def _bars(report: Mapping[str, Any], set_name: str) -> list[tuple[str, float]]:
    """(model, nDCG@10) on a set, best first."""
    bars = [(name, m["scores"][set_name]["ndcg@10"]) for name, m in report["models"].items()]
    return sorted(bars, key=lambda bar: -bar[1])


@dataclass(frozen=True)
class _SmallVectors:
    """A model's scores with small vectors.

    Attributes:
        sizes: the vector sizes of the plot's curves; empty where there is only one.
    """

    header: list[str]
    rows: list[list[str]]
    plot: ScatterPlot
    sizes: str


def _small_vectors(vectors: Mapping[str, Sequence[Mapping[str, Any]]]) -> _SmallVectors:
    header, *rows = small_vector_table(vectors)
    means = mean_over_sets(vectors)
    sizes = sorted({mean["dims"] for mean in means})
    listed = ", ".join(f"{size:,}" for size in sizes) if len(sizes) > 1 else ""
    return _SmallVectors(header, rows, quality_plot(means), listed)
