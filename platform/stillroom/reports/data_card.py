"""A corpus's data card in Markdown: its sources, what was dropped and why, its evaluation sets."""

from collections.abc import Mapping
from typing import Any

from stillroom.config.corpus import Corpus, DocstringSource, Source
from stillroom.config.languages import LANGUAGES
from stillroom.data.readers.records import EvaluationSet
from stillroom.reports.markdown import markdown_code, markdown_row

# Count in counts.json → its explanation in the card.
DROP_REASONS = {
    "query_is_passage": "query and passage are the same text",
    "repeated_passages": "an earlier pair has the same passage",
    "repeated_queries": "an earlier pair has the same query",
    "near_copies": "the passage nearly copies an earlier one",
    "held_out": "in the held-out test set, or a near-copy of a text in it",
    "contaminated": "contains a query or an answer of an evaluation set",
    "beyond_max_pairs": "more than max_pairs; a random draw decides which stay",
    "of_dropped_pairs": "negatives of pairs that were dropped",
    "positive": "a negative that is its own pair's positive",
    "conflicts": "a negative that is another pair's positive for the same query",
    "repeated": "an earlier text is the same",
    "tested": "in an evaluation set",
}


def data_card(
    section: Corpus, summary: Mapping[str, Any], evaluation: Mapping[str, EvaluationSet]
) -> str:
    """The card.

    Args:
        summary: the content of counts.json.
        evaluation: every set, the held-out one included.
    """
    lines = ["# Data card", "", *_sources_table(section, summary)]
    lines += [
        f"Kept in total: {summary['pairs']:,} pairs, {summary['passages']:,} passages (including "
        f"those of the pairs and their negatives), {summary['conversations']:,} conversations.",
        "",
    ]
    for name, kinds in summary["sources"].items():
        lines += [f"## {name}", "", *_files(section.sources[name])]
        if unread := summary["left_out"][name]:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(unread.items()))
            lines += [
                f"Left out while reading: {counts}. Invalid rows are listed in left_out.json.",
                "",
            ]
        for kind, counts in kinds.items():
            if counts["read"]:
                lines += [f"### {kind}", "", *_drops_table(counts)]
    if general := summary.get("general"):
        lines += ["## General texts", "", *_general(general)]
    lines += ["## Evaluation sets", ""]
    lines += _table(
        ["set", "language", "queries", "passages", "from"],
        [
            [
                name,
                LANGUAGES[summary["languages"]["evaluation"][name]],
                f"{len(judged.qrels):,}",
                f"{len(judged.passages):,}",
                section.evaluation.get(name, "taken out of a source"),
            ]
            for name, judged in evaluation.items()
        ],
    )
    if guards := summary.get("guards"):
        lines += ["## Elsewhere: sets from other fields", "", *_guards(guards)]
    return "\n".join(lines)


def _general(general: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, *(f"{counts[key]:,}" for key in ("texts", "words", "duplicates", "tested"))]
        for name, counts in general["sources"].items()
    ]
    return [
        f"{general['texts']:,} texts without queries, {general['words']:,} words; identity "
        f"`{general['identity']}`.",
        "",
        *_table(["source", "texts", "words", "repeated", "in an evaluation set"], rows),
    ]


def _guards(guards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        [name, "–", "–", f"not measured: {counts['left_out']}"]
        if "passages" not in counts
        else [
            name, f"{counts['queries']:,}", f"{counts['passages']:,}",
            f"{counts['matched']:,} of its texts; what matched them is not trained on",
        ]
        for name, counts in guards.items()
    ]  # fmt: skip
    return _table(["set", "queries", "passages", "matched by training texts"], rows)


def _sources_table(section: Corpus, summary: Mapping[str, Any]) -> list[str]:
    kinds = ("pairs", "passages", "conversations")
    rows = []
    for (name, source), counts in zip(
        section.sources.items(), summary["sources"].values(), strict=True
    ):
        kept = [f"{counts[kind]['kept']:,} of {counts[kind]['read']:,}" for kind in kinds]
        language = LANGUAGES[summary["languages"]["sources"][name]]
        rows.append([name, source.format, source.license or "not stated", language, *kept])
    return _table(["source", "format", "license", "language", *kinds], rows)


def _files(source: Source) -> list[str]:
    if isinstance(source, DocstringSource):
        packages = ["all installed packages"] if source.packages is None else source.packages
        return [f"The docstrings of {', '.join(packages)}.", ""]
    return [f"- {markdown_code(location)}" for location in source.locations()] + [""]


def _drops_table(counts: Mapping[str, int]) -> list[str]:
    """The number of rows left after each cleaning step."""
    left = counts["read"]
    rows = [["read", "", f"{left:,}", ""]]
    for reason, dropped in counts.items():
        if reason in DROP_REASONS and dropped:
            left -= dropped
            rows.append([reason, f"−{dropped:,}", f"{left:,}", DROP_REASONS[reason]])
    return _table(["step", "dropped", "left", "why"], rows)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, and an empty line."""
    return [*map(markdown_row, (header, ["---"] * len(header), *rows)), ""]
