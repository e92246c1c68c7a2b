"""Queries, a collection, and who answers whom → pairs: BEIR folders and MS MARCO's files.

The collection's texts wait in a database on disk, so that memory does not grow with it.
"""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stillroom.data.readers.layouts import Fields, id_field, text_of, titled_text
from stillroom.data.readers.locations import form_of
from stillroom.data.readers.records import LeftOut, Pair, Refuse
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.errors import UserError

Judgement = tuple[str, str, str, float]  # where, query id, passage id, grade


def read_judged(
    *, collection: str, queries: str, qrels: str, left_out: LeftOut | None = None
) -> Iterator[Pair]:
    """A pair for every passage that answers a query.

    Args:
        collection: a file of ids and texts, and perhaps titles: JSONL, or a .tsv without header.
        queries: the same of queries.
        qrels: lines of query, passage and grade, or TREC's four fields, the second of them unused.
            A query's lines that follow each other give each of its pairs those passages as
            negatives that are graded 0 or less.
        left_out: counts what is left out; whether a wrong row is, its `skip` says.

    Raises:
        UserError: at a wrong row, or when ids repeat or are not there.
    """
    left_out = left_out or LeftOut()
    refuse = left_out.refuse
    with _Texts(collection, refuse) as passages, _Texts(queries, refuse) as asked:
        by_query = itertools.groupby(_judgements(qrels, refuse), key=lambda judged: judged[1])
        for _, group in by_query:
            told: dict[str, str] = {}
            grades: dict[str, float] = {}
            query = ""
            for where, query_id, passage_id, grade in group:
                try:
                    query = asked.text(query_id, "query", where)
                    told[passage_id] = passages.text(passage_id, "passage", where)
                    grades[passage_id] = grade
                except UserError as fault:
                    refuse(fault)
            wrong = tuple(told[own] for own, grade in grades.items() if grade <= 0 and told[own])
            for own in (own for own, grade in grades.items() if grade > 0):
                if query and told[own]:
                    yield Pair(query, told[own], wrong)
                else:
                    left_out.drop("empty")


def read_id_triples(
    *, collection: str, queries: str, triples: str, left_out: LeftOut | None = None
) -> Iterator[Pair]:
    """A pair with a negative for every line of query, passage and negative, by id.

    Raises:
        UserError: as above.
    """
    left_out = left_out or LeftOut()
    refuse = left_out.refuse
    with _Texts(collection, refuse) as passages, _Texts(queries, refuse) as asked:
        for where, line in read_lines(triples, refuse):
            try:
                query, positive, negative = _fields(line, where, (3,), "query, passage, negative")
                pair = Pair(
                    asked.text(query, "query", where),
                    passages.text(positive, "passage", where),
                    (passages.text(negative, "passage", where),),
                )
            except UserError as fault:
                refuse(fault)
                continue
            if pair.query and pair.passage and pair.negatives[0]:
                yield pair
            else:
                left_out.drop("empty")


def read_collection(collection: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """The texts of a collection, without those that are empty."""
    left_out = left_out or LeftOut()
    for _, _, text in _texts(collection, left_out.refuse):
        if text:
            yield text
        else:
            left_out.drop("empty")


class _Texts:
    """Texts by id, in a temporary database that is gone when it is closed."""

    def __init__(self, file: str, refuse: Refuse):
        self.file, self.refuse = file, refuse
        self.exit = contextlib.ExitStack()

    def __enter__(self) -> "_Texts":
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stillroom-"))
            self.data = sqlite3.connect(Path(folder) / "texts.sqlite")
            stack.callback(self.data.close)
            # Nobody else reads it, and it need not outlive us.
            self.data.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            self.data.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            for where, own_id, text in _texts(self.file, self.refuse):
                try:
                    self.data.execute("INSERT INTO texts VALUES (?, ?)", (own_id, text))
                except sqlite3.IntegrityError:
                    problem = f"repeats the id {own_id!r}"
                    self.refuse(UserError(where, problem, "Give every text its own"))
            self.exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.exit.close()

    def text(self, own_id: str, kind: str, where: str) -> str:
        found = self.data.execute("SELECT text FROM texts WHERE id = ?", (own_id,)).fetchone()
        if found is None:
            problem = f"judges the {kind} {own_id!r}, which is not there"
            raise UserError(where, problem, "Remove the line")
        return str(found[0])


def _texts(file: str, refuse: Refuse) -> Iterator[tuple[str, str, str]]:
    """(where, id, text with its title)."""
    columns = ("id", "text") if form_of(file).kind == ".tsv" else None
    for where, row in read_rows(file, columns=columns, refuse=refuse):
        try:
            yield where, _id(row, where), titled_text(row, "text", where)
        except UserError as fault:
            refuse(fault)


def _id(row: Fields, where: str) -> str:
    field = id_field(row) or "_id"
    return text_of({field: str(row[field])} if field in row else {}, field, where)


def _judgements(qrels: str, refuse: Refuse) -> Iterator[Judgement]:
    for number, (where, line) in enumerate(read_lines(qrels, refuse)):
        if not line.strip() or (number == 0 and line.startswith("query-id")):
            continue
        try:
            query, *_, passage, grade = _fields(line, where, (3, 4), "query, passage and grade")
            try:
                yield where, query, passage, float(grade)
            except ValueError:
                problem = f"has the grade {grade!r}"
                raise UserError(where, problem, "Give a number") from None
        except UserError as fault:
            refuse(fault)


def _fields(line: str, where: str, sizes: tuple[int, ...], expected: str) -> list[str]:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) not in sizes:
        raise UserError(where, f"has {len(fields)} fields", f"Write {expected}")
    return [field.strip() for field in fields]
