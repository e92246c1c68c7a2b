"""Relevance judgements (qrels): which passages answer which queries, by id."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stillroom.data.readers.fields import field_names, id_field, is_number, number_field
from stillroom.data.readers.locations import file_format
from stillroom.data.readers.records import OnBadRow
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.data.readers.tables import read_records
from stillroom.errors import UserError


class Judgement(NamedTuple):
    """The grade of a passage for a query; relevant above 0."""

    where: str
    query: str
    passage: str
    grade: float


# Names of the columns in a header, in lower case and with underscores.
QUERY_COLUMNS = ("query_id", "qid", "queryid", "query", "topic", "topic_id")
PASSAGE_COLUMNS = (
    *("corpus_id", "doc_id", "docid", "docno", "document_id", "pid", "passage_id", "did"),
    *("corpusid", "passage", "doc", "document"),
)
GRADE_COLUMNS = ("score", "grade", "relevance", "rel", "label", "judgement", "judgment")
HEADERLESS = {3: (0, 1, 2), 4: (0, 2, 3)}  # number of columns → those used; 4 as TREC has them
TABLES = (".jsonl", ".json", ".csv", ".parquet")


def read_judgements(file: str, on_bad_row: OnBadRow) -> Iterator[Judgement]:
    """The judgements of a file.

    It has lines of query, passage and grade, or TREC's four fields, of which the second is
    unused; between tabs, or else spaces. A first line with the names of the columns gives their
    order. A JSONL, CSV or Parquet file has such columns too.

    Raises:
        UserError: when the header lacks a column; and at a bad row, by `on_bad_row`.
    """
    if file_format(file).extension in TABLES:
        rows: Iterator[tuple[str, dict[str, Any]]] = read_rows(file, on_bad_row=on_bad_row)
    else:
        rows = _lines(file, on_bad_row)
    for where, row in rows:
        try:
            query, passage, grade = _columns(list(row), where)
            yield Judgement(
                where,
                id_field(row, query, where),
                id_field(row, passage, where),
                number_field(row, grade, where),
            )
        except UserError as error:
            on_bad_row(error)


def _lines(file: str, on_bad_row: OnBadRow) -> Iterator[tuple[str, dict[str, Any]]]:
    names: Sequence[str] | None = None
    is_first = True
    lines = functools.partial(read_lines, file, keep_ends=True)
    for consumed, cells, problem in read_records("\t", lines, on_bad_row):
        where = consumed[0][0]
        if len(cells) == 1:
            cells = cells[0].split()
        cells = [cell.strip() for cell in cells]
        if not any(cells) and not problem:
            continue
        if is_first and cells and _is_header(cells):
            names, is_first = cells, False
            _columns(names, where)
            continue
        is_first = False
        if names is None and len(cells) in HEADERLESS:
            query, passage, grade = (cells[i] for i in HEADERLESS[len(cells)])
            yield where, {"query-id": query, "corpus-id": passage, "score": grade}
        elif names is not None and len(cells) == len(names):
            yield where, dict(zip(names, cells, strict=True))
        else:
            fix = "Write query, passage and grade" if names is None else "Correct the line"
            on_bad_row(UserError(where, f"has {len(cells)} fields", fix))
            for lost, _ in consumed[1:]:
                on_bad_row(UserError(lost, f"is in quotation marks that open in {where}", fix))


def _is_header(cells: Sequence[str]) -> bool:
    known = {*QUERY_COLUMNS, *PASSAGE_COLUMNS, *GRADE_COLUMNS}
    return not is_number(cells[-1]) and any(_normalised(cell) in known for cell in cells)


def _columns(names: Sequence[str], where: str) -> tuple[str, str, str]:
    """The names of the columns of query, passage and grade."""
    by_name = {_normalised(name): name for name in names}
    columns = []
    for known in (QUERY_COLUMNS, PASSAGE_COLUMNS, GRADE_COLUMNS):
        column = next((by_name[name] for name in known if name in by_name), None)
        if column is None:
            has = field_names(dict.fromkeys(names))
            problem = f"has no {known[0].replace('_', '-')!r}; it has {has}"
            raise UserError(where, problem, "Name the columns query-id, corpus-id and score")
        columns.append(column)
    return columns[0], columns[1], columns[2]


def _normalised(name: str) -> str:
    return name.strip().lower().replace("-", "_")
