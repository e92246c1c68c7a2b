"""Queries, a collection and relevance judgements → pairs: BEIR folders and MS MARCO's files.

The texts of the collection are kept in a database on disk, so memory does not grow with it.
"""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stillroom.data.readers.fields import Fields, find_id_field, text_field, titled_text_field
from stillroom.data.readers.locations import file_format
from stillroom.data.readers.records import OnBadRow, Pair, SkippedRows
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.errors import UserError

Judgement = tuple[str, str, str, float]  # where, query id, passage id, grade


def read_judged_pairs(
    *, collection: str, queries: str, qrels: str, skipped: SkippedRows | None = None
) -> Iterator[Pair]:
    """A pair for every relevant passage of a query.

    Args:
        collection: a file of ids and texts, and perhaps titles: JSONL, or a .tsv without header.
        queries: such a file of queries.
        qrels: lines of query, passage and grade, or TREC's four fields, of which the second is
            unused. Passages with a grade of 0 or less become negatives of the query's pairs, if
            its lines follow each other.
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at a bad row unless they are skipped; also when ids repeat or are missing.
    """
    skipped = skipped or SkippedRows()
    on_bad_row = skipped.on_bad_row
    with (
        _TextStore(collection, on_bad_row) as passage_texts,
        _TextStore(queries, on_bad_row) as query_texts,
    ):
        judgements = _read_judgements(qrels, on_bad_row)
        for _, of_query in itertools.groupby(judgements, key=lambda judgement: judgement[1]):
            query = ""
            graded: dict[str, tuple[float, str]] = {}  # passage id → grade, text
            for where, query_id, passage_id, grade in of_query:
                try:
                    query = query_texts.get(query_id, "query", where)
                    graded[passage_id] = grade, passage_texts.get(passage_id, "passage", where)
                except UserError as error:
                    on_bad_row(error)
            negatives = tuple(text for grade, text in graded.values() if grade <= 0 and text)
            for passage in (text for grade, text in graded.values() if grade > 0):
                if query and passage:
                    yield Pair(query, passage, negatives)
                else:
                    skipped.count("empty")


def read_id_triples(
    *, collection: str, queries: str, triples: str, skipped: SkippedRows | None = None
) -> Iterator[Pair]:
    """A pair with a negative for every line of three ids: query, passage and negative.

    Args and errors are those of `read_judged_pairs`.
    """
    skipped = skipped or SkippedRows()
    on_bad_row = skipped.on_bad_row
    with (
        _TextStore(collection, on_bad_row) as passage_texts,
        _TextStore(queries, on_bad_row) as query_texts,
    ):
        for where, line in read_lines(triples, on_bad_row):
            try:
                query, positive, negative = _fields(line, where, (3,), "query, passage, negative")
                pair = Pair(
                    query_texts.get(query, "query", where),
                    passage_texts.get(positive, "passage", where),
                    (passage_texts.get(negative, "passage", where),),
                )
            except UserError as error:
                on_bad_row(error)
                continue
            if pair.query and pair.passage and pair.negatives[0]:
                yield pair
            else:
                skipped.count("empty")


def read_collection(collection: str, skipped: SkippedRows | None = None) -> Iterator[str]:
    """The texts of a collection; empty ones are skipped."""
    skipped = skipped or SkippedRows()
    for _, _, text in _read_texts(collection, skipped.on_bad_row):
        if text:
            yield text
        else:
            skipped.count("empty")


class _TextStore:
    """Texts by id, in a temporary database that is deleted on exit."""

    def __init__(self, file: str, on_bad_row: OnBadRow):
        self.file, self.on_bad_row = file, on_bad_row
        self.exit = contextlib.ExitStack()

    def __enter__(self) -> "_TextStore":
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stillroom-"))
            self.data = sqlite3.connect(Path(folder) / "texts.sqlite")
            stack.callback(self.data.close)
            # Fast and unsafe: nobody else reads it, and it need not survive a crash.
            self.data.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            self.data.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            for where, text_id, text in _read_texts(self.file, self.on_bad_row):
                try:
                    self.data.execute("INSERT INTO texts VALUES (?, ?)", (text_id, text))
                except sqlite3.IntegrityError:
                    problem = f"repeats the id {text_id!r}"
                    self.on_bad_row(UserError(where, problem, "Give every text its own id"))
            self.exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.exit.close()

    def get(self, text_id: str, kind: str, where: str) -> str:
        """The text of an id that a judgement names; `kind` and `where` are for its error."""
        row = self.data.execute("SELECT text FROM texts WHERE id = ?", (text_id,)).fetchone()
        if row is None:
            problem = f"judges the {kind} {text_id!r}, which does not exist"
            raise UserError(where, problem, "Remove the line")
        return str(row[0])


def _read_texts(file: str, on_bad_row: OnBadRow) -> Iterator[tuple[str, str, str]]:
    """(where, id, text with its title)."""
    columns = ("id", "text") if file_format(file).extension == ".tsv" else None
    for where, row in read_rows(file, columns=columns, on_bad_row=on_bad_row):
        try:
            yield where, _id(row, where), titled_text_field(row, "text", where)
        except UserError as error:
            on_bad_row(error)


def _id(row: Fields, where: str) -> str:
    field = find_id_field(row) or "_id"
    return text_field({field: str(row[field])} if field in row else {}, field, where)


def _read_judgements(qrels: str, on_bad_row: OnBadRow) -> Iterator[Judgement]:
    for number, (where, line) in enumerate(read_lines(qrels, on_bad_row)):
        if not line.strip() or (number == 0 and line.startswith("query-id")):
            continue
        try:
            query, *_, passage, grade = _fields(line, where, (3, 4), "query, passage and grade")
            try:
                yield where, query, passage, float(grade)
            except ValueError:
                problem = f"has the grade {grade!r}"
                raise UserError(where, problem, "Give a number") from None
        except UserError as error:
            on_bad_row(error)


def _fields(line: str, where: str, sizes: tuple[int, ...], expected: str) -> list[str]:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) not in sizes:
        raise UserError(where, f"has {len(fields)} fields", f"Write {expected}")
    return [field.strip() for field in fields]
