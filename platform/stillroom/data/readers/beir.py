"""Evaluation sets in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from stillroom.data.readers.fields import Fields, id_field, text_field, titled_text_field
from stillroom.data.readers.judgements import read_judgements
from stillroom.data.readers.qrels import conflicting_grades
from stillroom.data.readers.records import EvaluationSet, raise_bad_row
from stillroom.data.readers.rows import read_rows
from stillroom.errors import UserError


def read_beir(folder: Path) -> EvaluationSet:
    """Reads an evaluation set in BEIR layout.

    It may have a prompts.json too, with a prompt for `query`, `passage` or both. Queries without
    a relevant passage are left out of the qrels. Judged passages that do not exist stay, and are
    never found, as in BEIR and trec_eval: the published qrels of ArguAna have some.

    Raises:
        UserError: when a file is missing or wrong, ids repeat, the qrels name an unknown query, a
            passage has two grades, or no query has a relevant passage.
    """
    passages = _by_id(
        folder / "corpus.jsonl", lambda row, where: titled_text_field(row, "text", where)
    )
    queries = _by_id(folder / "queries.jsonl", lambda row, where: text_field(row, "text", where))
    file = folder / "qrels" / "test.tsv"
    graded = _read_grades(str(file), queries)
    judged = {query: grades for query, grades in graded.items() if max(grades.values()) > 0}
    if not judged:
        raise UserError(
            str(file), "has no query with a relevant passage", "Give scores above 0 to some"
        )
    qrels, missing = (
        {
            query: {id: grade for id, grade in grades.items() if (id in passages) == exists}
            for query, grades in judged.items()
        }
        for exists in (True, False)
    )
    missing = {query: grades for query, grades in missing.items() if grades}
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        example = next(id for grades in missing.values() for id in grades)
        problem = f"judges the passage {example!r}, which does not exist, and no relevant that does"
        raise UserError(str(file), problem, "Give the ids of corpus.jsonl")
    prompts = _prompts(folder / "prompts.json")
    return EvaluationSet(passages, queries, qrels, prompts, missing)


def _read_grades(file: str, queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Query id → passage id → grade."""
    graded: dict[str, dict[str, int]] = {}
    for where, query, passage, grade in read_judgements(file, raise_bad_row):
        if query not in queries:
            raise UserError(
                where, f"judges the query {query!r}, which does not exist", "Remove the line"
            )
        if grade != int(grade):
            raise UserError(where, f"has the score {grade}", "Give a whole number")
        earlier = graded.setdefault(query, {}).setdefault(passage, int(grade))
        if earlier != grade:
            raise conflicting_grades(where, query, passage, (earlier, grade), "an earlier line")
    return graded


def _by_id(path: Path, text: Callable[[Fields, str], str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, row in read_rows(str(path)):
        text_id = id_field(row, "_id", where)
        if text_id in texts:
            raise UserError(where, f"repeats the id {text_id!r}", "Give every text its own id")
        texts[text_id] = text(row, where)
    return texts


def _prompts(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is not JSON: {error}", "Correct or remove it") from error
    is_texts = isinstance(prompts, dict) and all(isinstance(p, str) for p in prompts.values())
    if not is_texts or not set(prompts) <= {"query", "passage"}:
        raise UserError(
            str(path), "has no prompts", 'Write {"query": "…", "passage": "…"}, or one of them'
        )
    return dict(prompts)


def write_beir(evaluation_set: EvaluationSet, folder: Path) -> None:
    """Writes an evaluation set in BEIR layout, as `read_beir` reads it."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", evaluation_set.passages), ("queries", evaluation_set.queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text_id, text in texts.items():
                file.write(json.dumps({"_id": text_id, "text": text}, ensure_ascii=False) + "\n")
    with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["query-id", "corpus-id", "score"])
        for query, grades in evaluation_set.qrels.items():
            rows.writerows([query, *judged] for judged in grades.items())
            rows.writerows(
                [query, *judged] for judged in evaluation_set.missing.get(query, {}).items()
            )
    if evaluation_set.prompts:
        text = json.dumps(evaluation_set.prompts, ensure_ascii=False)
        (folder / "prompts.json").write_text(text + "\n", encoding="utf-8")


def read_beir_sets(folder: Path) -> dict[str, EvaluationSet]:
    """Reads the evaluation set in a folder, or all those in its sub-folders, by name.

    Raises:
        UserError: when there is none, or one is wrong.
    """
    if (folder / "qrels").is_dir():
        return {folder.resolve().name: read_beir(folder)}
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    sets = {part.name: read_beir(part) for part in inside if (part / "qrels").is_dir()}
    if not sets:
        raise UserError(
            str(folder),
            "holds no evaluation set",
            "Give a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, or one of such",
        )
    return sets
