"""The data card of a corpus: what went in, what came out, and what became of the rest."""

from collections.abc import Mapping
from typing import Any

from stillroom.config.corpus import Corpus, Docstrings
from stillroom.data.readers.records import EvaluationSet

WHY = {
    "query_is_passage": "query and passage are the same text",
    "repeated_passages": "a pair before it has the same passage",
    "repeated_queries": "a pair before it has the same query",
    "near_copies": "its passage is a near-copy of one before it",
    "held_out": "tested: in the held-out set, or a near-copy of what is",
    "contaminated": "gives an evaluation set's query or answer away",
    "beyond_max_pairs": "more than max_pairs; which ones stay is drawn by lot",
    "of_dropped_pairs": "negatives of pairs that were dropped",
    "positive": "a negative that is its own pair's positive",
    "conflicts": "a negative that another pair has as the same query's positive: that wins",
    "repeated": "the same text comes before it",
    "tested": "in an evaluation set",
}


def card(
    section: Corpus, summary: Mapping[str, Any], evaluation: Mapping[str, EvaluationSet]
) -> str:
    """Markdown."""
    lines = ["# Data card", ""]
    lines += _table(
        ["source", "format", "license", "pairs", "passages", "conversations"],
        [
            [name, source.format, source.license or "not stated"]
            + [
                f"{of[kind]['kept']:,} of {of[kind]['read']:,}"
                for kind in ("pairs", "passages", "conversations")
            ]
            for (name, source), of in zip(
                section.sources.items(), summary["sources"].values(), strict=True
            )
        ],
    )
    lines += [
        f"Kept in all: {summary['pairs']:,} pairs, {summary['passages']:,} passages (those of the "
        f"pairs and their negatives among them), {summary['conversations']:,} conversations.",
        "",
    ]
    for name, kinds in summary["sources"].items():
        lines += [f"## {name}", "", *_files(section.sources[name])]
        if unread := summary["left_out"][name]:
            said = ", ".join(f"{count:,} {reason}" for reason, count in sorted(unread.items()))
            lines += [
                f"Left out in reading: {said}; wrong rows are listed in left_out.json.",
                "",
            ]
        for kind, counts in kinds.items():
            if counts["read"]:
                lines += [f"### {kind}", "", *_steps(counts)]
    lines += ["## Evaluation sets", ""]
    lines += _table(
        ["set", "queries", "passages", "from"],
        [
            [
                name,
                f"{len(kept.qrels):,}",
                f"{len(kept.passages):,}",
                section.evaluation.get(name, "split off a source"),
            ]
            for name, kept in evaluation.items()
        ],
    )
    return "\n".join(lines)


def _files(source: Any) -> list[str]:
    if isinstance(source, Docstrings):
        of = "all installed packages" if source.packages is None else ", ".join(source.packages)
        return [f"The docstrings of {of}.", ""]
    return [f"- `{place}`" for place in source.places()] + [""]


def _steps(counts: Mapping[str, int]) -> list[str]:
    """What was left after each step."""
    left = counts["read"]
    rows = [["read", "", f"{left:,}", ""]]
    for reason, dropped in counts.items():
        if reason in WHY and dropped:
            left -= dropped
            rows.append([reason, f"−{dropped:,}", f"{left:,}", WHY[reason]])
    return _table(["step", "dropped", "left", "why"], rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines] + [
        ""
    ]
