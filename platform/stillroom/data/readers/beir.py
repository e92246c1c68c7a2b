"""Evaluation sets in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from stillroom.data.readers.layouts import Fields, text_of, titled_text
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.readers.rows import read_rows
from stillroom.errors import UserError


def read_beir(folder: Path) -> EvaluationSet:
    """A set in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv, and perhaps prompts.json
    with a prompt for `query`, `passage` or both.

    Raises:
        UserError: when a file is missing or wrong, ids repeat, the qrels name what is not
            there, or no query has a relevant passage.
    """
    passages = _by_id(folder / "corpus.jsonl", lambda row, where: titled_text(row, "text", where))
    queries = _by_id(folder / "queries.jsonl", lambda row, where: text_of(row, "text", where))
    file = folder / "qrels" / "test.tsv"
    qrels: dict[str, dict[str, int]] = {}
    for where, row in read_rows(str(file)):
        query, passage = text_of(row, "query-id", where), text_of(row, "corpus-id", where)
        for kind, given, known in (("query", query, queries), ("passage", passage, passages)):
            if given not in known:
                raise UserError(
                    where, f"judges the {kind} {given!r}, which is not there", "Remove the line"
                )
        try:
            grade = int(row.get("score", ""))
        except (TypeError, ValueError):
            raise UserError(
                where, f"has the score {row.get('score')!r}", "Give a whole number"
            ) from None
        qrels.setdefault(query, {})[passage] = grade
    judged = {q: grades for q, grades in qrels.items() if max(grades.values()) > 0}
    if not judged:
        raise UserError(
            str(file), "has no query with a relevant passage", "Give scores above 0 to some"
        )
    return EvaluationSet(passages, queries, judged, _prompts(folder / "prompts.json"))


def _by_id(path: Path, text: Callable[[Fields, str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in read_rows(str(path)):
        own_id = text_of({"_id": str(row["_id"])} if "_id" in row else {}, "_id", where)
        if own_id in found:
            raise UserError(where, f"repeats the id {own_id!r}", "Give every text its own")
        found[own_id] = text(row, where)
    return found


def _prompts(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise UserError(str(path), f"is no JSON: {fault}", "Mend or remove it") from fault
    texts = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    if not texts or not set(found) <= {"query", "passage"}:
        raise UserError(
            str(path), "holds no prompts", 'Write {"query": "…", "passage": "…"}, or one of them'
        )
    return dict(found)


def write_beir(kept: EvaluationSet, folder: Path) -> None:
    """The same layout."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", kept.passages), ("queries", kept.queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for own_id, text in texts.items():
                file.write(json.dumps({"_id": own_id, "text": text}, ensure_ascii=False) + "\n")
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["query-id", "corpus-id", "score"])
        for query, grades in kept.qrels.items():
            rows.writerows([query, passage, grade] for passage, grade in grades.items())
    if kept.prompts:
        text = json.dumps(kept.prompts, ensure_ascii=False)
        (folder / "prompts.json").write_text(text + "\n", encoding="utf-8")


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
