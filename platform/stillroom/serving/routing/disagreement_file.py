"""Keeps the texts on which student and teacher agree least, as training data for the next run."""

import json
from collections.abc import Mapping
from pathlib import Path

from stillroom.storage.atomic import atomic_write


class DisagreementFile:
    """JSON Lines with `text`, which a recipe's source of `format: files` reads as passages.

    Args:
        file: replaced by a rename, so that readers never see a partial file. Its existing rows are
            kept.
        max_texts: texts in the file.
    """

    def __init__(self, file: Path, max_texts: int):
        self.file, self.max_texts = file, max_texts
        self.scores: dict[str, float] = {}
        if file.exists():
            rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            self.scores = {row["text"]: row["agreement"] for row in rows}

    def add(self, agreements: Mapping[str, float]) -> None:
        """Add text → agreement; of all texts ever added, those with the least agreement stay."""
        merged = self.scores | dict(agreements)
        lowest = sorted(merged.items(), key=lambda item: item[1])[: self.max_texts]
        if dict(lowest) == self.scores:
            return
        self.scores = dict(lowest)
        rows = (json.dumps({"text": text, "agreement": round(score, 6)}) for text, score in lowest)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file) as file:
            file.writelines(f"{row}\n" for row in rows)
