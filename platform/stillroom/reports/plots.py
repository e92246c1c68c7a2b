"""Plots as coordinates in SVG units; the templates draw them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.encoders.vectors.quantise import VECTOR_PRECISIONS

WIDTH, HEIGHT, MARGIN = 560, 200, 40
SCORE_TICK = 20  # ticks of the nDCG@10 axis are 1/20 apart


@dataclass(frozen=True)
class LinePlot:
    """A line, and the labels at the ends of its axes.

    Attributes:
        points: of an SVG polyline.
    """

    title: str
    points: str
    left: str
    right: str
    bottom: str
    top: str


def line_plot(title: str, curve: Sequence[tuple[int, float]]) -> LinePlot:
    """A curve of (step, value), scaled to the plot."""
    steps, values = zip(*curve, strict=True)
    low, high = min(values), max(values)
    x_scale = (WIDTH - 2 * MARGIN) / max(1, steps[-1] - steps[0])
    y_scale = (HEIGHT - 2 * MARGIN) / ((high - low) or 1.0)
    points = " ".join(
        f"{MARGIN + (step - steps[0]) * x_scale:.1f},"
        f"{HEIGHT - MARGIN - (value - low) * y_scale:.1f}"
        for step, value in curve
    )
    return LinePlot(title, points, f"{steps[0]}", f"{steps[-1]}", f"{low:.3g}", f"{high:.3g}")


@dataclass(frozen=True)
class Histogram:
    """Bars, and the labels of the axes.

    Attributes:
        bars: (left, top, width, height) of each bin that is not empty.
        highest: the count of the highest bar.
    """

    title: str
    bars: list[tuple[float, float, float, float]]
    left: str
    right: str
    highest: str


def histogram(title: str, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
    """Counts between equally spaced edges, scaled to the plot."""
    width = (WIDTH - 2 * MARGIN) / len(counts)
    y_scale = (HEIGHT - 2 * MARGIN) / (max(counts) or 1)
    bars = [
        (MARGIN + i * width, HEIGHT - MARGIN - count * y_scale, 0.9 * width, count * y_scale)
        for i, count in enumerate(counts)
        if count
    ]
    return Histogram(title, bars, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", f"{max(counts):,}")


@dataclass(frozen=True)
class Curve:
    """Points as (x, y, label), sorted by x."""

    name: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class ScatterPlot:
    """Curves in a frame, and the ticks of its axes as (coordinate, label)."""

    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    left: float = MARGIN
    right: float = WIDTH - 130  # leaves room for the curves' names
    top: float = 12
    height: float = 280

    @property
    def bottom(self) -> float:
        """The y of the lower edge of the frame."""
        return self.height - 24


def quality_plot(means: Sequence[Mapping[str, Any]]) -> ScatterPlot:
    """nDCG@10 against bytes per vector, a curve per precision.

    Args:
        means: as `tables.mean_over_sets` returns them.
    """
    frame = ScatterPlot([], [], [])
    log_bytes = [math.log2(mean["bytes"]) for mean in means]
    first, last = math.floor(min(log_bytes)), math.ceil(max(log_bytes))
    scores = [mean["ndcg@10"] for mean in means]
    low = math.floor(SCORE_TICK * min(scores)) / SCORE_TICK
    high = math.ceil(SCORE_TICK * max(scores)) / SCORE_TICK

    def x(size: float) -> float:
        return round(frame.left + (size - first) * (frame.right - frame.left) / (last - first), 1)

    def y(score: float) -> float:
        share = (score - low) / ((high - low) or 1.0)
        return round(frame.bottom - share * (frame.bottom - frame.top), 1)

    points: dict[str, list[tuple[float, float, str]]] = {}
    for mean, size in sorted(zip(means, log_bytes, strict=True), key=lambda pair: pair[1]):
        label = f"{mean['precision']}, {mean['dims']:,} dims: {mean['ndcg@10']:.3f}"
        points.setdefault(mean["precision"], []).append((x(size), y(mean["ndcg@10"]), label))
    names = [precision for precision in VECTOR_PRECISIONS if precision in points]
    ticks = range(round(SCORE_TICK * low), round(SCORE_TICK * high) + 1)
    return ScatterPlot(
        [Curve(name, points[name]) for name in names],
        [(x(size), f"{2**size:,}") for size in range(first, last + 1)],
        [(y(tick / SCORE_TICK), f"{tick / SCORE_TICK:.2f}") for tick in ticks],
    )
