"""The HTML page of a contamination report."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from stillroom.data.cleaning.contamination_index import MATCH_KINDS
from stillroom.reports.page import render_page

# Kind of match → its explanation on the page.
MATCH_EXPLANATIONS = {
    "copy": "the same letters and digits in the same order",
    "edited": "a text of about the same length that shares most of its words in runs of four, or a "
    "short text in which one word differs",
    "contains": "a longer text that contains the test text, or most of it",
    "part": "a piece of the test text",
    "overlap": "less than that, but many words in a row",
    "meaning": "a paraphrase: the vectors point in nearly the same direction",
}


def render_contamination(contamination: Mapping[str, Any], name: str) -> str:
    """The page of a contamination.json; the best matches come first."""
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for row in contamination["counts"]:
        table[row["source"], row["set"]][row["kind"]] += row["pairs"]
        totals[row["set"]] += row["pairs"]
    by_set = defaultdict(list)
    for hit in sorted(contamination["hits"], key=lambda hit: -hit["score"]):
        by_set[hit["set"]].append(hit)
    kinds = {row["kind"] for row in contamination["counts"]}
    return render_page(
        "contamination.html",
        name=name,
        action=contamination["action"],
        found=contamination["found"],
        total=sum(contamination["checked"].values()),
        counts=contamination["counts"],
        kinds=[kind for kind in MATCH_KINDS if kind in kinds],
        explanations=MATCH_EXPLANATIONS,
        table=table,
        totals=totals,
        by_set=by_set,
    )
