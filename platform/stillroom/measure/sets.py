"""The evaluation sets under a folder."""

from pathlib import Path

from stillroom.errors import UserError
from stillroom.text.formats import EvaluationSet, read_beir


def read_sets(folder: Path) -> dict[str, EvaluationSet]:
    """The set in `folder`, or every set among its sub-folders, by name.

    Raises:
        UserError: when there is none.
    """
    if (folder / "qrels").is_dir():
        return {folder.resolve().name: read_beir(folder)}
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {part.name: read_beir(part) for part in inside if (part / "qrels").is_dir()}
    if not found:
        raise UserError(
            str(folder),
            "holds no evaluation set",
            "Give a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, or one of such",
        )
    return found
