"""What decontamination found, as one HTML page that needs nothing else."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from stillroom.data.cleaning.decontaminate import KINDS
from stillroom.reports.render import PAGE

MEANINGS = {
    "copy": "the same letters and digits in the same order",
    "edited": "a text about as long that shares most of its words in runs of four, or a short "
    "text in which one word differs",
    "contains": "a longer text that holds the tested one, or most of it",
    "part": "a piece of the tested text",
    "overlap": "less than that, but many words in a row",
    "meaning": "vectors that point the same way",
}


def render(contamination: Mapping[str, Any], name: str) -> str:
    """The page of a contamination.json; what matches best comes first."""
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for row in contamination["counts"]:
        table[row["source"], row["set"]][row["kind"]] += row["pairs"]
        totals[row["set"]] += row["pairs"]
    by_set = defaultdict(list)
    for hit in sorted(contamination["hits"], key=lambda hit: -hit["score"]):
        by_set[hit["set"]].append(hit)
    seen = {row["kind"] for row in contamination["counts"]}
    return PAGE.get_template("contamination.html").render(
        name=name,
        action=contamination["action"],
        found=contamination["found"],
        total=sum(contamination["checked"].values()),
        counts=contamination["counts"],
        kinds=[kind for kind in KINDS if kind in seen],
        meanings=MEANINGS,
        table=table,
        totals=totals,
        by_set=by_set,
    )
