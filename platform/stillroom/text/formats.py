"""Files → records. Every error names the file and the line."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its fields
FORMATS = ".jsonl, .jsonl.gz, .csv, .tsv or .parquet"


@dataclass(frozen=True)
class Pair:
    """A query, a passage that answers it, and passages that do not."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationSet:
    """Passages and queries by id; qrels: query id → passage id → grade, relevant above 0."""

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of a file with `query`, `positive` (or `passage`), and perhaps `negatives`.

    `negatives` is a list, in a CSV a JSON list; `negative` is one text.

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    for where, row in _rows(path):
        field = "positive" if "positive" in row else "passage"
        yield Pair(_text(row, "query", where), _text(row, field, where), _negatives(row, where))


def read_passages(path: Path) -> Iterator[str]:
    """Passages of a file with `text` (or `passage`) and perhaps `title`, or the lines of a .txt.

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    if path.name.endswith((".txt", ".txt.gz")):
        rows: Iterable[Row] = ((w, {"text": line}) for w, line in _lines(path) if line.strip())
        rows = _some(rows, path)
    else:
        rows = _rows(path)
    for where, row in rows:
        yield _titled(row, "text" if "text" in row else "passage", where)


def read_beir(folder: Path) -> EvaluationSet:
    """A set in BEIR layout: corpus.jsonl, queries.jsonl and qrels/test.tsv.

    Raises:
        UserError: when a file is missing or wrong, ids repeat, the qrels name what is not
            there, or no query has a relevant passage.
    """
    passages = _by_id(folder / "corpus.jsonl", lambda row, where: _titled(row, "text", where))
    queries = _by_id(folder / "queries.jsonl", lambda row, where: _text(row, "text", where))
    file = folder / "qrels" / "test.tsv"
    qrels: dict[str, dict[str, int]] = {}
    for where, row in _rows(file):
        query, passage = _text(row, "query-id", where), _text(row, "corpus-id", where)
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
    return EvaluationSet(passages, queries, judged)


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


# --- rows -----------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[Row]:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _some(_json_rows(path), path)
    if name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        return _some(_table_rows(path, "\t" if ".tsv" in name else ","), path)
    if name.endswith(".parquet"):
        return _some(_parquet_rows(path), path)
    raise UserError(str(path), "is of no format that we read", f"Use {FORMATS}")


def _some(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(str(path), "is empty", "Give at least one row")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line), the line's end and a byte order mark taken off."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield f"{path}:{number}", text.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(str(path), "does not exist", "Correct the path") from None
    except UnicodeDecodeError as fault:
        raise UserError(
            f"{path}:{number}", f"is not UTF-8 ({fault.reason})", "Save the file as UTF-8"
        ) from fault
    except (OSError, EOFError) as fault:
        raise UserError(str(path), f"cannot be read: {fault}", "Look at the file") from fault


def _json_rows(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise UserError(where, f"is no JSON: {fault}", "Mend or remove the line") from fault
        if not isinstance(row, dict):
            raise UserError(where, "is no JSON object", 'Write it as {"field": "text", …}')
        yield where, row


def _table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    lines = _lines(path)
    # A quoted field may hold line ends, so the reader gets them back.
    reader = csv.DictReader((line + "\n" for _, line in lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(
                    where,
                    f"has not the {len(reader.fieldnames or ())} fields of the header",
                    "Quote fields that hold the delimiter",
                )
            yield where, dict(row)
    except csv.Error as fault:
        raise UserError(f"{path}:{reader.line_num}", f"is no row: {fault}", "Mend it") from fault


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(str(path), "does not exist", "Correct the path")
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as fault:
        raise UserError(str(path), f"cannot be read: {fault}", "Look at the file") from fault


def _by_id(path: Path, text_of: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in _rows(path):
        own_id = _text({"_id": str(row["_id"])} if "_id" in row else {}, "_id", where)
        if own_id in found:
            raise UserError(where, f"repeats the id {own_id!r}", "Give every text its own")
        found[own_id] = text_of(row, where)
    return found


# --- fields ---------------------------------------------------------------------------------


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        had = ", ".join(map(str, row)) or "nothing"
        raise UserError(where, f"has no {field!r}; it has {had}", f"Add {field!r}")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(where, f"{field!r} is of type {kind}, not text", "Put it in quotes")
    if not value.strip():
        raise UserError(where, f"{field!r} is empty", "Fill it, or remove the row")
    return value


def _titled(row: Mapping[str, Any], field: str, where: str) -> str:
    """Title and text together; in a collection either may be empty, as real ones have it."""
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise UserError(where, "'title' is not text", "Put it in quotes")
    if "_id" in row and row.get(field) == "":
        return title.strip()
    return f"{title} {_text(row, field, where)}".strip()


def _negatives(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("negatives", row.get("negative"))
    if value is None or value == "":
        return ()
    if isinstance(value, str) and "negatives" in row:  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError as fault:
            raise UserError(
                where, f"'negatives' is no JSON list: {fault}", 'Write ["one", "two"]'
            ) from fault
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise UserError(where, "'negatives' is no list", 'Write ["one", "two"]')
    return tuple(_text({"negatives": text}, "negatives", where) for text in value)
