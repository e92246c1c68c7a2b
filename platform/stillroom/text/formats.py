"""Files → records. Every error names the file and the line."""

import csv
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its fields
SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
FORMATS = ".jsonl, .jsonl.gz, .csv, .tsv or .parquet"


@dataclass(frozen=True)
class Pair:
    """A query, a passage that answers it, and passages that do not."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """What a model is to write, and after what.

    Attributes:
        prompt: all that comes before the completion, letter for letter.
        question: the user's last turn by itself; the prompt where it is not made of turns.
    """

    prompt: str
    completion: str
    question: str


@dataclass(frozen=True)
class EvaluationSet:
    """Passages and queries by id; qrels: query id → passage id → grade, relevant above 0.

    `prompts` are what the set's task puts before a `query` or a `passage`, for teachers that are
    told their task; where it says nothing, a model's own holds.
    """

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    prompts: dict[str, str] = field(default_factory=dict)

    def judged_queries(self) -> list[str]:
        """Texts of the queries that the qrels judge, in the set's order."""
        return [text for own_id, text in self.queries.items() if own_id in self.qrels]


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


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Conversations of a file, in one of three forms a row; in a CSV, lists are JSON.

    `prompt` and `completion`: two texts, taken as they are. `text`: a list of turns, the user's
    and the assistant's by turns, as GritLM has it. `messages`: a list of `role` and `content`, as
    OpenAI has it. Of turns, the assistant's last is the completion, and those before it become the
    prompt: each under its speaker and followed by an empty line, then the assistant's name.

        User:
        How do I sort a list?

        Assistant:

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    for where, row in _rows(path):
        there = [field for field in ("completion", "messages", "text") if row.get(field)]
        if there[:1] == ["messages"]:
            yield _conversation(_messages(row, where), "messages", where)
        elif there[:1] == ["text"]:
            speakers = itertools.cycle(("user", "assistant"))
            turns = list(zip(speakers, _texts(row, "text", where), strict=False))
            yield _conversation(turns, "text", where)
        else:
            prompt, completion = (_text(row, field, where) for field in ("prompt", "completion"))
            yield Conversation(prompt, completion, question=prompt)


def read_beir(folder: Path) -> EvaluationSet:
    """A set in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv, and perhaps prompts.json
    with a prompt for `query`, `passage` or both.

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
    return EvaluationSet(passages, queries, judged, _prompts(folder / "prompts.json"))


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
    if "negatives" in row:
        return _texts(row, "negatives", where) if row["negatives"] not in (None, "") else ()
    if isinstance(row.get("negative"), list):
        return _texts(row, "negative", where)
    return (_text(row, "negative", where),) if row.get("negative") else ()


def _texts(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = _list(row, field, where, '["one", "two"]')
    return tuple(_text({field: text}, field, where) for text in value)


def _list(row: Mapping[str, Any], field: str, where: str, example: str) -> list[Any]:
    value = row[field]
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError as fault:
            raise UserError(
                where, f"{field!r} is no JSON list: {fault}", f"Write {example}"
            ) from fault
    if not isinstance(value, list):
        raise UserError(where, f"{field!r} is no list", f"Write {example}")
    return value


def _messages(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """(speaker, text) of each message."""
    turns = []
    for message in _list(row, "messages", where, '[{"role": "user", "content": "text"}, …]'):
        role = message.get("role") if isinstance(message, dict) else message
        if not isinstance(role, str) or role not in SPEAKERS:
            raise UserError(
                where,
                f"'messages' has the role {role!r}",
                f"Use {', '.join(SPEAKERS)}, or remove the row",
            )
        turns.append((role, _text(message, "content", where)))
    return turns


def _conversation(turns: list[tuple[str, str]], field: str, where: str) -> Conversation:
    while turns and turns[-1][0] != "assistant":  # nobody answered
        turns = turns[:-1]
    if len(turns) < 2:
        raise UserError(
            where,
            f"{field!r} has no assistant's turn that follows another",
            "Give what is asked and what is answered, or remove the row",
        )
    *before, (_, completion) = turns
    shown = [f"{SPEAKERS[speaker]}:\n{text}\n\n" for speaker, text in before]
    asked = [text for speaker, text in before if speaker == "user"]
    prompt = "".join(shown) + f"{SPEAKERS['assistant']}:\n"
    return Conversation(prompt, completion, question=asked[-1] if asked else prompt)
