"""How a run spent its time, from its journal: as data, a table and an SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jinja2

DEAD_AFTER_S = 90  # a run that has not ended counts as killed this long after its last heartbeat

PAGE = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.observability", "."), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip

# Of the drawing, in SVG units: widths of its columns, height of a line, and the first line.
NAMES_WIDTH, BARS_WIDTH, DURATIONS_WIDTH, LINE_HEIGHT, TOP = 250, 620, 130, 26, 56


@dataclass
class Span:
    """One stage of a run.

    Attributes:
        outcome: made, reused, failed, killed, or running.
        started, ended: seconds since 1970; None when reused. A killed stage ended with the last
            heartbeat of the run.
        trainings: (time, steps done before, workers) of every start of its training.
        memory_gib: peak of training's first worker, else of the driver.
    """

    ref: str
    outcome: str = "running"
    started: float | None = None
    ended: float | None = None
    memory_gib: float | None = None
    error: str | None = None
    trainings: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Duration; 0 when reused."""
        return 0.0 if self.started is None or self.ended is None else self.ended - self.started

    @property
    def restarts(self) -> int:
        """How often its training restarted within this run."""
        return max(0, len(self.trainings) - 1)

    @property
    def resumed_after(self) -> int | None:
        """The steps of an earlier run that it resumed after; None when there were none."""
        return (self.trainings[0][1] or None) if self.trainings else None


@dataclass(frozen=True)
class Timeline:
    """A run and its stages.

    Attributes:
        outcome: done, failed, stopped, killed, or running.
        started, ended: seconds since 1970.
        about: fields that describe the run as a whole, such as its recipe.
    """

    run: str
    outcome: str
    started: float
    ended: float
    spans: list[Span]
    about: dict[str, Any]
    error: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    def seconds_between_stages(self) -> float:
        """Seconds in which no stage ran: starting Ray, reading what exists."""
        return max(0.0, self.seconds - sum(span.seconds for span in self.spans))

    def as_json(self) -> dict[str, Any]:
        """The run's entry in `stillroom runs --json`."""
        return {
            "run": self.run,
            "outcome": self.outcome,
            "began": _iso(self.started),
            "ended": _iso(self.ended),
            "seconds": round(self.seconds, 3),
            "error": self.error,
            **self.about,
            "stages": [
                {
                    "ref": span.ref,
                    "outcome": span.outcome,
                    "began": _iso(span.started),
                    "ended": _iso(span.ended),
                    "seconds": round(span.seconds, 3),
                    "share": round(span.seconds / self.seconds, 4) if self.seconds else 0.0,
                    "resumed_after": span.resumed_after,
                    "restarts": span.restarts,
                    "workers": span.trainings[-1][2] if span.trainings else None,
                    "memory_gib": span.memory_gib and round(span.memory_gib, 3),
                    "error": span.error,
                }
                for span in self.spans
            ],
            "between": round(self.seconds_between_stages(), 3),
        }


def build_timeline(
    run: str, events: Sequence[Mapping[str, Any]], heartbeat: float | None, now: float
) -> Timeline:
    """A run's timeline from its events.

    Args:
        events: in the order of their times.
        heartbeat: time of the last one; `now`: both in seconds since 1970.
    """
    spans: dict[str, Span] = {}
    about: dict[str, Any] = {}
    outcome, error = "running", None
    started = last = events[0]["at"]
    for event in events:
        at, ref = event["at"], event.get("ref", "")
        last = max(last, at)
        match event["event"]:
            case "run begins":
                about = {k: v for k, v in event.items() if k not in ("at", "event", "began")}
                started = event["began"]
            case "reused":
                spans[ref] = Span(ref, "reused")
            case "stage begins":
                spans[ref] = Span(ref, started=at)
            case "training begins" if ref in spans:
                spans[ref].trainings.append((at, event["after"], event["workers"]))
            case "stage ends":
                spans[ref].outcome, spans[ref].ended = event["outcome"], at
                spans[ref].memory_gib = event.get("memory_gib")
            case "stage fails":
                spans[ref].outcome, spans[ref].ended = "failed", at
                spans[ref].error = event["error"]
            case "run ends":
                outcome, error = event["outcome"], event["error"]
    if outcome == "running":
        last = max(last, heartbeat or last)
        if now - last > DEAD_AFTER_S:
            outcome = "killed"
        else:
            last = now
    for span in spans.values():
        if span.outcome == "running":
            span.outcome, span.ended = ("running" if outcome == "running" else "killed"), last
    return Timeline(run, outcome, started, last, list(spans.values()), about, error)


def text_bar(span: Span, timeline: Timeline, width: int) -> str:
    """A bar of `width` characters that shows when in the run a stage ran."""
    if span.started is None or span.ended is None or not timeline.seconds:
        return ""
    start = int((span.started - timeline.started) / timeline.seconds * width)
    end = max(start + 1, round((span.ended - timeline.started) / timeline.seconds * width))
    return (" " * start + "█" * (end - start))[:width]


def table_rows(timeline: Timeline, width: int = 30) -> list[list[str]]:
    """Rows of text, the header first, then one per stage, in order.

    Args:
        width: of the bars, in characters.
    """
    rows = [["stage", "started", "took", "share", "outcome", "memory", "when"]]
    for span in timeline.spans:
        if span.started is None:
            rows.append([span.ref, "", "", "", span.outcome, "", ""])
            continue
        memory = "" if span.memory_gib is None else f"{span.memory_gib:.1f} GiB"
        rows.append(
            [
                span.ref,
                format_clock(span.started),
                format_duration(span.seconds),
                f"{span.seconds / timeline.seconds:.0%}" if timeline.seconds else "",
                describe_outcome(span),
                memory,
                text_bar(span, timeline, width),
            ]
        )
    return rows


def describe_outcome(span: Span) -> str:
    """Such as `made; resumed after step 40; restarted once, after step 60`."""
    parts = [span.outcome]
    if span.resumed_after is not None:
        parts.append(f"resumed after step {span.resumed_after}")
    if span.restarts:
        times = {1: "once", 2: "twice"}.get(span.restarts, f"{span.restarts} times")
        afters = ", ".join(str(after) for _, after, _ in span.trainings[1:])
        parts.append(f"restarted {times}, after step {afters}")
    return "; ".join(parts)


def format_duration(seconds: float) -> str:
    """Such as 0.4 s · 12 s · 3 min 05 s · 2 h 07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_clock(at: float) -> str:
    """The time of day, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"


def render_svg(timeline: Timeline) -> str:
    """The run as a self-contained SVG, with a bar per stage from its start to its end."""

    def x(at: float) -> float:
        share = (at - timeline.started) / (timeline.seconds or 1.0)
        return round(NAMES_WIDTH + share * BARS_WIDTH, 1)

    rows = [
        {
            "y": TOP + number * LINE_HEIGHT,
            "ref": span.ref,
            "outcome": span.outcome,
            "x": None if span.started is None else x(span.started),
            "width": 0.0
            if span.started is None or span.ended is None
            else max(1.5, round(x(span.ended) - x(span.started), 1)),
            "duration": "" if span.started is None else format_duration(span.seconds),
            "tooltip": describe_outcome(span) + (f": {span.error}" if span.error else ""),
            "marks": [x(at) for at, _, _ in span.trainings[1:]],
        }
        for number, span in enumerate(timeline.spans)
    ]
    ticks = [
        {"x": x(timeline.started + seconds), "text": format_duration(seconds)}
        for seconds in (share * timeline.seconds for share in (0, 0.25, 0.5, 0.75, 1))
    ]
    return PAGE.get_template("timeline.svg").render(
        timeline=timeline,
        rows=rows,
        ticks=ticks,
        began=_iso(timeline.started),
        took=format_duration(timeline.seconds),
        top=TOP,
        width=NAMES_WIDTH + BARS_WIDTH + DURATIONS_WIDTH,
        height=TOP + LINE_HEIGHT * len(rows) + 16,
        line=LINE_HEIGHT,
        names=NAMES_WIDTH,
    )


def _iso(at: float | None) -> str | None:
    return (
        None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    )
