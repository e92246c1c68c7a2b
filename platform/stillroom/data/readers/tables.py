"""Lines of CSV and TSV files → rows."""

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stillroom.data.readers.records import OnBadRow
from stillroom.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it is, for error messages; its fields
Line = tuple[str, str]  # where it is; its text with its line end

Record = tuple[list[Line], list[str], str]  # its lines, its cells, what is wrong with it

MAX_FIELD_CHARACTERS = 1 << 27

csv.field_size_limit(MAX_FIELD_CHARACTERS)


def table_rows(
    file: str,
    delimiter: str,
    open_lines: Callable[[OnBadRow], Iterator[Line]],
    on_bad_row: OnBadRow,
) -> Iterator[Row]:
    """The rows of a table whose first line names its columns.

    Args:
        open_lines: reads the file's lines from the first on.

    Raises:
        UserError: when the header is wrong, whether or not bad rows are skipped.
    """
    names: list[str] | None = None
    for number, (consumed, cells, problem) in enumerate(
        _records(delimiter, open_lines, on_bad_row)
    ):
        where = consumed[0][0]
        if names is None:
            if number == 0 and where != f"{file}:1":  # a bad line, which was skipped
                where, problem = f"{file}:1", "the line cannot be read"
            if cells or problem:
                names = _header(where, cells, problem)
        elif problem:
            _report(consumed, f"is not a valid row: {problem}", on_bad_row)
        elif cells and len(cells) != len(names):
            problem = f"has {len(cells)} fields, but the header has {len(names)}"
            on_bad_row(UserError(where, problem, "Quote its fields, or correct it"))
        elif cells:
            yield where, dict(zip(names, cells, strict=True))


def _header(where: str, cells: Sequence[str], problem: str) -> list[str]:
    names = [name.strip() for name in cells]
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if repeated is not None:
        problem = f"it names {repeated!r} twice"
    if problem:
        raise UserError(where, f"is not a valid header: {problem}", "Correct the first line")
    return names


def _report(consumed: Sequence[Line], problem: str, on_bad_row: OnBadRow) -> None:
    """Reports every line of a row that cannot be told from its neighbours."""
    first = consumed[0][0]
    on_bad_row(UserError(first, problem, "Quote its fields, or correct it"))
    for where, _ in consumed[1:]:
        lost = f"is in quotation marks that {first} opens and no line closes"
        on_bad_row(UserError(where, lost, "Close or double the quotation mark"))


def _records(
    delimiter: str, open_lines: Callable[[OnBadRow], Iterator[Line]], on_bad_row: OnBadRow
) -> Iterator[Record]:
    lines = open_lines(on_bad_row)
    if delimiter == "\t":  # may be without quotes: that shows at the first quotation mark
        for line in lines:
            if '"' in line[1]:
                lines = itertools.chain([line], lines)
                break
            yield _split(line, delimiter)
        else:
            return
        if not _is_quoted(open_lines(lambda _: None), delimiter):
            yield from (_split(line, delimiter) for line in lines)
            return
    yield from _quoted_records(lines, delimiter)


def _split(line: Line, delimiter: str) -> Record:
    text = line[1].rstrip("\r\n")
    return [line], text.split(delimiter) if text else [], ""


def _quoted_records(lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    """Rows in CSV's form, in which a quoted cell may span lines."""
    consumed: list[Line] = []

    def texts() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line[1]

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        consumed.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = str(error)
            if "new-line" in problem:
                problem = "a carriage return (CR) stands outside of quotes"
            yield consumed, [], problem
            continue
        if cells is None:
            return
        yield consumed, cells, ""


def _is_quoted(lines: Iterator[Line], delimiter: str) -> bool:
    """Whether quotation marks always enclose a cell and are doubled within one, as in CSV.

    In many .tsv files a quotation mark is a character like any other.
    """
    within_a_cell = re.compile(f'[^{delimiter}]"[^{delimiter}]')
    for consumed, _, problem in _quoted_records(lines, delimiter):
        if problem:
            return False
        for _, line in consumed:
            if '"' in line and within_a_cell.search(line.rstrip("\r\n").replace('""', "")):
                return False
    return True
