"""What a run's journal says, as a table and a picture of where its time went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jinja2

SILENT_S = 90  # without a sign of life, a run that has not said that it ends is dead

PAGE = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.observability", "."), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip

# Of the drawing, in SVG units.
NAMES, BARS, FIGURES, LINE, TOP = 250, 620, 130, 26, 56


@dataclass
class Span:
    """One stage of a run.

    Attributes:
        outcome: made, reused, failed, killed, or running.
        began, ended: seconds since 1970; of what was reused, both None. What was killed ended with
            the run's last sign of life.
        trainings: (when, steps done before, workers) of each time that its training began.
        memory_gib: the most that training's first worker held, else the driver.
    """

    ref: str
    outcome: str = "running"
    began: float | None = None
    ended: float | None = None
    memory_gib: float | None = None
    error: str | None = None
    trainings: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began

    @property
    def restarts(self) -> int:
        """How often its training began again within this run."""
        return max(0, len(self.trainings) - 1)

    @property
    def resumed_after(self) -> int | None:
        """The steps that an earlier run had left it; None where it left none."""
        return (self.trainings[0][1] or None) if self.trainings else None


@dataclass(frozen=True)
class Timeline:
    """A run. `outcome` is done, failed, stopped, killed or running."""

    run: str
    outcome: str
    began: float
    ended: float
    spans: list[Span]
    about: dict[str, Any]
    error: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def between(self) -> float:
        """Seconds in which no stage was at work: the start of Ray, reading what exists."""
        return max(0.0, self.seconds - sum(span.seconds for span in self.spans))

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "outcome": self.outcome,
            "began": _iso(self.began),
            "ended": _iso(self.ended),
            "seconds": round(self.seconds, 3),
            "error": self.error,
            **self.about,
            "stages": [
                {
                    "ref": span.ref,
                    "outcome": span.outcome,
                    "began": _iso(span.began),
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
            "between": round(self.between(), 3),
        }


def timeline(
    run: str, events: Sequence[Mapping[str, Any]], alive: float | None, now: float
) -> Timeline:
    """What a run's events tell, in the order of their times.

    Args:
        alive: its last sign of life; now: both in seconds since 1970.
    """
    spans: dict[str, Span] = {}
    about: dict[str, Any] = {}
    outcome, error = "running", None
    began = last = events[0]["at"]
    for event in events:
        at, ref = event["at"], event.get("ref", "")
        last = max(last, at)
        match event["event"]:
            case "run begins":
                about = {k: v for k, v in event.items() if k not in ("at", "event", "began")}
                began = event["began"]
            case "reused":
                spans[ref] = Span(ref, "reused")
            case "stage begins":
                spans[ref] = Span(ref, began=at)
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
        last = max(last, alive or last)
        if now - last > SILENT_S:
            outcome = "killed"
        else:
            last = now
    for span in spans.values():
        if span.outcome == "running":
            span.outcome, span.ended = ("running" if outcome == "running" else "killed"), last
    return Timeline(run, outcome, began, last, list(spans.values()), about, error)


def bar(span: Span, of: Timeline, width: int) -> str:
    """A span's place in its run, in so many characters."""
    if span.began is None or span.ended is None or not of.seconds:
        return ""
    start = int((span.began - of.began) / of.seconds * width)
    end = max(start + 1, round((span.ended - of.began) / of.seconds * width))
    return (" " * start + "█" * (end - start))[:width]


def table(of: Timeline, width: int = 30) -> list[list[str]]:
    """Rows of text, the header first: a stage each, in order."""
    rows = [["stage", "began", "took", "of all", "what became of it", "memory", "when"]]
    for span in of.spans:
        if span.began is None:
            rows.append([span.ref, "", "", "", span.outcome, "", ""])
            continue
        memory = "" if span.memory_gib is None else f"{span.memory_gib:.1f} GiB"
        rows.append(
            [
                span.ref,
                clock(span.began),
                lasting(span.seconds),
                f"{span.seconds / of.seconds:.0%}" if of.seconds else "",
                became(span),
                memory,
                bar(span, of, width),
            ]
        )
    return rows


def became(span: Span) -> str:
    """`made, after step 40 of an earlier run, begun again twice`, and the like."""
    parts = [span.outcome]
    if span.resumed_after is not None:
        parts.append(f"taken up after step {span.resumed_after}")
    if span.restarts:
        times = {1: "once", 2: "twice"}.get(span.restarts, f"{span.restarts} times")
        afters = ", ".join(str(after) for _, after, _ in span.trainings[1:])
        parts.append(f"restarted {times}, after step {afters}")
    return "; ".join(parts)


def lasting(seconds: float) -> str:
    """0.4 s · 12 s · 3 min 05 s · 2 h 07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(at: float) -> str:
    """The time of day, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"


def svg(of: Timeline) -> str:
    """The run as a drawing that needs nothing else: a bar a stage, from its begin to its end."""

    def x(at: float) -> float:
        return round(NAMES + (at - of.began) / (of.seconds or 1.0) * BARS, 1)

    rows = [
        {
            "y": TOP + number * LINE,
            "ref": span.ref,
            "outcome": span.outcome,
            "x": None if span.began is None else x(span.began),
            "width": 0.0
            if span.began is None or span.ended is None
            else max(1.5, round(x(span.ended) - x(span.began), 1)),
            "figure": "" if span.began is None else lasting(span.seconds),
            "about": became(span) + (f": {span.error}" if span.error else ""),
            "marks": [x(at) for at, _, _ in span.trainings[1:]],
        }
        for number, span in enumerate(of.spans)
    ]
    ticks = [
        {"x": x(of.began + share * of.seconds), "text": lasting(share * of.seconds)}
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    return PAGE.get_template("timeline.svg").render(
        of=of, rows=rows, ticks=ticks, began=_iso(of.began), took=lasting(of.seconds), top=TOP,
        width=NAMES + BARS + FIGURES, height=TOP + LINE * len(rows) + 16, line=LINE, names=NAMES,
    )  # fmt: skip


def _iso(at: float | None) -> str | None:
    return (
        None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    )
