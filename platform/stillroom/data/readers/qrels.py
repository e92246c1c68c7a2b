"""Queries, a collection and relevance judgements → pairs: BEIR folders and MS MARCO's files.

The texts of the collection are kept in a database on disk, so memory does not grow with it.
"""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stillroom.data.readers.fields import (
    Fields,
    find_id_field,
    id_field,
    text_field,
    titled_text_field,
)
from stillroom.data.readers.judgements import Judgement, read_judgements
from stillroom.data.readers.locations import file_format
from stillroom.data.readers.records import OnBadRow, Pair, SkippedRows
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.errors import UserError


def read_judged_pairs(
    *, collection: str, queries: str, qrels: str, skipped: SkippedRows | None = None
) -> Iterator[Pair]:
    """A pair for every relevant passage of a query.

    Args:
        collection: a file of ids and texts, and perhaps titles: JSONL, or a .tsv without header.
        queries: such a file of queries.
        qrels: as `read_judgements` reads them. Passages with a grade of 0 or less become
            negatives of the query's pairs.
        skipped: counts skipped rows, and decides whether bad rows are skipped. Judgements of a
            query without a relevant passage are `no_positive`, and repeated ones `repeated`.

    Raises:
        UserError: at a bad row unless they are skipped; also when ids repeat or are missing, or a
            passage has two grades for a query.
    """
    skipped = skipped or SkippedRows()
    on_bad_row = skipped.on_bad_row
    with (
        _TextStore(collection, "passage", on_bad_row) as passage_texts,
        _TextStore(queries, "query", on_bad_row) as query_texts,
    ):
        judgements = query_texts.store_judgements(read_judgements(qrels, on_bad_row), skipped)
        for query_id, of_query in itertools.groupby(judgements, key=lambda row: row.query):
            query = ""
            graded: list[tuple[float, str]] = []  # grade, text
            for where, _, passage_id, grade in of_query:
                try:
                    query = query_texts.get(query_id, where)
                    text = passage_texts.get(passage_id, where)
                except UserError as error:
                    on_bad_row(error)
                    continue
                if text:
                    graded.append((grade, text))
                else:
                    skipped.count("empty")
            negatives = tuple(text for grade, text in graded if grade <= 0)
            if len(negatives) == len(graded):
                skipped.counts["no_positive"] += len(negatives)
            for grade, passage in graded:
                if grade > 0:
                    yield Pair(query, passage, negatives)


def read_id_triples(
    *, collection: str, queries: str, triples: str, skipped: SkippedRows | None = None
) -> Iterator[Pair]:
    """A pair with a negative for every line of three ids: query, passage and negative.

    Args and errors are those of `read_judged_pairs`.
    """
    skipped = skipped or SkippedRows()
    on_bad_row = skipped.on_bad_row
    with (
        _TextStore(collection, "passage", on_bad_row) as passage_texts,
        _TextStore(queries, "query", on_bad_row) as query_texts,
    ):
        for where, line in read_lines(triples, on_bad_row):
            try:
                query, positive, negative = _fields(line, where, (3,), "query, passage, negative")
                pair = Pair(
                    query_texts.get(query, where),
                    passage_texts.get(positive, where),
                    (passage_texts.get(negative, where),),
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
    for _, _, text in _read_texts(collection, "passage", skipped.on_bad_row):
        if text:
            yield text
        else:
            skipped.count("empty")


def conflicting_grades(
    where: str, query: str, passage: str, grades: tuple[float, float], earlier: str
) -> UserError:
    """The error for a passage that is judged twice for a query, with different grades."""
    problem = (
        f"judges {passage!r} for {query!r} as {grades[1]:g}, and {earlier} judges it as "
        f"{grades[0]:g}"
    )
    return UserError(where, problem, "Remove one of the lines")


class _TextStore:
    """Texts by id, in a temporary database that is deleted on exit.

    Args:
        kind: of the texts: `query` or `passage`.
    """

    def __init__(self, file: str, kind: str, on_bad_row: OnBadRow):
        self.file, self.kind, self.on_bad_row = file, kind, on_bad_row
        self.exit = contextlib.ExitStack()

    def __enter__(self) -> "_TextStore":
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stillroom-"))
            self.data = sqlite3.connect(Path(folder) / "texts.sqlite")
            stack.callback(self.data.close)
            # Fast and unsafe: nobody else reads it, and it need not survive a crash.
            self.data.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            self.data.execute("CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            for where, text_id, text in _read_texts(self.file, self.kind, self.on_bad_row):
                try:
                    self.data.execute("INSERT INTO texts VALUES (?, ?)", (text_id, text))
                except sqlite3.IntegrityError:
                    problem = f"repeats the id {text_id!r}"
                    self.on_bad_row(UserError(where, problem, "Give every text its own id"))
            self.exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.exit.close()

    def store_judgements(
        self, judgements: Iterator[Judgement], skipped: SkippedRows
    ) -> Iterator[Judgement]:
        """Judgements without repeated ones, those of a query together: queries come in the order
        of their first judgement. They are kept in the database.
        """
        self.data.execute(
            "CREATE TABLE judgements (query TEXT, passage TEXT, grade REAL, place TEXT, "
            "number INTEGER, PRIMARY KEY (query, passage)) WITHOUT ROWID"
        )
        for number, (where, query, passage, grade) in enumerate(judgements):
            row = (query, passage, grade, where, number)
            try:
                self.data.execute("INSERT INTO judgements VALUES (?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                try:
                    self._require_grade(*row[:4])
                    skipped.count("repeated")
                except UserError as error:
                    skipped.on_bad_row(error)
        yield from itertools.starmap(
            Judgement,
            self.data.execute(
                "SELECT place, query, passage, grade FROM judgements JOIN "
                "(SELECT query AS first_query, MIN(number) AS first FROM judgements GROUP BY query)"
                " ON query = first_query ORDER BY first, number"
            ),
        )

    def _require_grade(self, query: str, passage: str, grade: float, where: str) -> None:
        """Raises an error where the passage has another grade for the query already."""
        [[earlier, place]] = self.data.execute(
            "SELECT grade, place FROM judgements WHERE query = ? AND passage = ?", (query, passage)
        )
        if earlier != grade:
            raise conflicting_grades(where, query, passage, (earlier, grade), place)

    def get(self, text_id: str, where: str) -> str:
        """The text of an id that a judgement names; `where` is for its error."""
        row = self.data.execute("SELECT text FROM texts WHERE id = ?", (text_id,)).fetchone()
        if row is None:
            problem = f"judges the {self.kind} {text_id!r}, which does not exist"
            raise UserError(where, problem, "Remove the line")
        return str(row[0])


def _read_texts(file: str, kind: str, on_bad_row: OnBadRow) -> Iterator[tuple[str, str, str]]:
    """(where, id, text with its title); only a passage may be empty."""
    columns = ("id", "text") if file_format(file).extension == ".tsv" else None
    text = titled_text_field if kind == "passage" else text_field
    for where, row in read_rows(file, columns=columns, on_bad_row=on_bad_row):
        try:
            yield where, _id(row, where), text(row, "text", where)
        except UserError as error:
            on_bad_row(error)


def _id(row: Fields, where: str) -> str:
    """The id of a text."""
    return id_field(row, find_id_field(row) or "_id", where)


def _fields(line: str, where: str, sizes: tuple[int, ...], expected: str) -> list[str]:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) not in sizes:
        raise UserError(where, f"has {len(fields)} fields", f"Write {expected}")
    return [field.strip() for field in fields]
