"""The results of decontamination, for people to read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from stillroom.data.cleaning.decontaminate import Hit
from stillroom.data.readers.records import EvaluationSet


@dataclass
class ContaminationReport:
    """Hits by source. All are counted; the first ones of each evaluation set are listed.

    Attributes:
        evaluation_sets: for the texts that were matched.
        action: how contaminated pairs are handled.
        max_listed: how many hits of each evaluation set are listed.
        checked: how many pairs of each source were checked.
        counts: contaminated pairs by source, evaluation set and kind of match.
        hits: the listed ones, as JSON.
    """

    evaluation_sets: Mapping[str, EvaluationSet]
    action: Literal["drop", "report"] = "drop"
    max_listed: int = 1000
    checked: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    hits: list[dict[str, Any]] = field(default_factory=list)
    _hits_per_set: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, pairs: int, hits: Sequence[Hit]) -> None:
        """Adds the hits among the next `pairs` pairs of a source."""
        before = self.checked[source]
        self.checked[source] += pairs
        for hit in hits:
            self.counts[source, hit.set, hit.kind] += 1
            self._hits_per_set[hit.set] += 1
            if self._hits_per_set[hit.set] <= self.max_listed:
                evaluation_set = self.evaluation_sets[hit.set]
                is_query = hit.role == "query"
                texts = evaluation_set.queries if is_query else evaluation_set.passages
                listed = asdict(replace(hit, pair=before + hit.pair))
                self.hits.append({"source": source, **listed, "evaluation_text": texts[hit.id]})

    def as_json(self) -> dict[str, Any]:
        """The content of contamination.json; `pair` counts all pairs of a source."""
        counts = [
            {"source": source, "set": name, "kind": kind, "pairs": count}
            for (source, name, kind), count in sorted(self.counts.items())
        ]
        return {
            "action": self.action,
            "checked": dict(self.checked),
            "found": self.counts.total(),
            "counts": counts,
            "listed_per_set": self.max_listed,
            "hits": self.hits,
        }
