"""Plots as coordinates in SVG units; the templates draw them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.encoders.vectors.quantise import VECTOR_PRECISIONS
from stillroom.evaluation.gate import mean_ndcg, model_with_role
from stillroom.evaluation.speed import is_unreliable

WIDTH, HEIGHT, MARGIN = 560, 200, 40
SCORE_TICKS = (20, 10, 5)  # ticks of a score's axis in 1; the first with at most MAX_TICKS
MAX_TICKS = 9
SPREAD = "texts_per_second_spread"
LINE_HEIGHT, LETTER_WIDTH = 13.0, 6.5  # of a label beside a point


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
    """Curves in a frame, and the ticks of its axes as (coordinate, label).

    Attributes:
        labels: beside points, as (x, y, text-anchor, text).
    """

    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    labels: Sequence[tuple[float, float, str, str]] = ()
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
    log_bytes = [math.log2(mean["bytes"]) for mean in means]
    first, last = math.floor(min(log_bytes)), math.ceil(max(log_bytes))
    x = _x_axis(first, last)
    y, y_ticks = _score_axis([mean["ndcg@10"] for mean in means])
    points: dict[str, list[tuple[float, float, str]]] = {}
    for mean, size in sorted(zip(means, log_bytes, strict=True), key=lambda pair: pair[1]):
        label = f"{mean['precision']}, {mean['dims']:,} dims: {mean['ndcg@10']:.3f}"
        points.setdefault(mean["precision"], []).append((x(size), y(mean["ndcg@10"]), label))
    names = [precision for precision in VECTOR_PRECISIONS if precision in points]
    return ScatterPlot(
        [Curve(name, points[name]) for name in names],
        [(x(size), f"{2**size:,}") for size in range(first, last + 1)],
        y_ticks,
    )


def speed_plot(report: Mapping[str, Any]) -> ScatterPlot | None:
    """The share of the teacher's mean nDCG@10 against passages a second, which is a log axis.

    A curve of the corpus's sets, and one of the guards where there are any. BM25 and pairs of
    models have no speed of their own, and are left out.

    Returns:
        None without two models that have a speed, or a teacher that finds anything.
    """
    speeds = {
        name: float(model["texts_per_second"])
        for name, model in report["models"].items()
        if model["texts_per_second"] and not model["role"].startswith("asymmetric")
    }
    shares = {"your corpus": _shares(report), "elsewhere": _shares(report.get("elsewhere"))}
    curves = {
        curve: {name: share for name, share in of_models.items() if name in speeds}
        for curve, of_models in shares.items()
    }
    if len(curves["your corpus"]) < 2:
        return None
    x_values = _round_numbers(min(speeds.values()), max(speeds.values()))
    x = _x_axis(math.log(x_values[0]), math.log(x_values[-1]))
    y, y_ticks = _score_axis([share for curve in curves.values() for share in curve.values()])
    drawn, labelled = [], []
    for curve, of_models in curves.items():
        points = []
        for name in sorted(of_models, key=speeds.__getitem__):
            share, speed = of_models[name], speeds[name]
            mark = "*" if is_unreliable(report["models"][name].get(SPREAD)) else ""
            at = x(math.log(speed)), y(share)
            points.append((*at, f"{name}, {curve}: {share:.1%}, {_number(speed)}{mark} passages/s"))
            labelled.append((*at, f"{name}{mark}"))
        if points:
            drawn.append(Curve(curve, points))
    x_ticks = [(x(math.log(value)), _number(value)) for value in x_values]
    return ScatterPlot(drawn, x_ticks, y_ticks, _place_labels(labelled))


def _shares(block: Mapping[str, Any] | None) -> dict[str, float]:
    """Model → its mean nDCG@10 over the teacher's; empty where nothing was measured."""
    teacher = block and model_with_role(block, "teacher")
    if not block or not teacher or not (best := mean_ndcg(teacher)):
        return {}
    return {name: mean_ndcg(model) / best for name, model in block["models"].items()}


def _x_axis(first: float, last: float) -> Callable[[float], float]:
    """A value's x in the frame."""
    scale = (ScatterPlot.right - ScatterPlot.left) / ((last - first) or 1.0)
    return lambda value: round(ScatterPlot.left + (value - first) * scale, 1)


def _score_axis(
    scores: Sequence[float],
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """A score's y in the frame, and the ticks."""
    for in_one in SCORE_TICKS:
        low, high = math.floor(in_one * min(scores)), math.ceil(in_one * max(scores))
        if high - low < MAX_TICKS:
            break
    frame = ScatterPlot([], [], [])
    scale = (frame.bottom - frame.top) / (((high - low) / in_one) or 1.0)

    def y(score: float) -> float:
        return round(frame.bottom - (score - low / in_one) * scale, 1)

    return y, [(y(tick / in_one), f"{tick / in_one:.2f}") for tick in range(low, high + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from below `low` to above `high`; only powers if many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(i for i, number in enumerate(numbers) if number <= low)
    last = min(i for i, number in enumerate(numbers) if number >= high)
    return numbers[first : last + 1] if last - first < MAX_TICKS else [10.0**p for p in powers]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.2g}"


def _place_labels(
    points: Sequence[tuple[float, float, str]],
) -> list[tuple[float, float, str, str]]:
    """Labels beside points, towards the middle of the frame; moved down where they would overlap.

    Args:
        points: (x, y, label).
    """
    middle = (ScatterPlot.left + ScatterPlot.right) / 2
    placed: list[tuple[float, float, str, str]] = []
    taken: list[tuple[float, float, float]] = []  # (y, left, right) of the labels so far
    # Points in one place, as the teacher's are in every curve, have one label.
    for x, y, text in sorted(dict.fromkeys(points), key=lambda point: point[1]):
        anchor, x_label = ("start", x + 8) if x < middle else ("end", x - 8)
        width = LETTER_WIDTH * len(text)
        left = x_label if anchor == "start" else x_label - width
        y_label = y + 4
        for y_other, left_other, right_other in sorted(taken):  # from the top down
            beside = left >= right_other or left + width <= left_other
            if not beside and y_label - y_other < LINE_HEIGHT:
                y_label = y_other + LINE_HEIGHT
        taken.append((y_label, left, left + width))
        placed.append((round(x_label, 1), round(y_label, 1), anchor, text))
    return placed
