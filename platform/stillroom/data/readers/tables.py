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

HIDDEN_RETURN = "\udc0d"  # which no decoded text has

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
        open_lines: reads the file's lines, with their ends, from the first on.

    Raises:
        UserError: when the header is wrong, whether or not bad rows are skipped.
    """
    names: list[str] | None = None
    records = read_records(delimiter, open_lines, on_bad_row)
    for number, (consumed, cells, problem) in enumerate(records):
        where = consumed[0][0]
        if names is None:
            if number == 0 and where != f"{file}:1":  # a bad line, which was skipped
                where, problem = f"{file}:1", "the line cannot be read"
            if cells or problem:
                names = _header(where, cells, problem)
        elif problem:
            report_bad_lines(consumed, f"is not a valid row: {problem}", on_bad_row)
        elif cells and len(cells) != len(names):
            problem = f"has {len(cells)} fields, but the header has {len(names)}"
            report_bad_lines(consumed, problem, on_bad_row)
        elif cells:
            yield where, dict(zip(names, cells, strict=True))


def _header(where: str, cells: Sequence[str], problem: str) -> list[str]:
    names = [name.strip() for name in cells]
    repeated = next((name for name in names if name and names.count(name) > 1), None)
    if any("\r" in name for name in names):
        problem = "it has carriage returns (CR)"
    if repeated is not None:
        problem = f"it names {repeated!r} twice"
    if problem:
        raise UserError(where, f"is not a valid header: {problem}", "Correct the first line")
    return names


def report_bad_lines(consumed: Sequence[Line], problem: str, on_bad_row: OnBadRow) -> None:
    """Reports every line of a bad row: a stray quotation mark may have joined several rows."""
    first = consumed[0][0]
    on_bad_row(UserError(first, problem, "Quote its fields, or correct it"))
    for where, _ in consumed[1:]:
        lost = f"is in quotation marks that open in {first}, which is bad"
        on_bad_row(UserError(where, lost, "Close or double the quotation mark"))


def read_records(
    delimiter: str, open_lines: Callable[[OnBadRow], Iterator[Line]], on_bad_row: OnBadRow
) -> Iterator[Record]:
    """The rows of a table, the header among them, as it is quoted.

    Args:
        open_lines: reads the file's lines, with their ends, from the first on.
    """
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
            yield _hide_returns(line[1])

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        consumed.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield consumed, [], str(error)
            continue
        if cells is None:
            return
        yield consumed, [cell.replace(HIDDEN_RETURN, "\r") for cell in cells], ""


def _hide_returns(line: str) -> str:
    """Hides carriage returns within a line from `csv`, which takes them for ends of rows."""
    if "\r" not in line:
        return line
    text = line.rstrip("\n").removesuffix("\r")
    return text.replace("\r", HIDDEN_RETURN) + line[len(text) :]


def _is_quoted(lines: Iterator[Line], delimiter: str) -> bool:
    """Whether quotation marks always enclose a cell and are doubled within one, as in CSV.

    In many .tsv files a quotation mark is a character like any other.
    """
    within_a_cell = re.compile(f'[^{delimiter}]"[^{delimiter}]')
    width = 0
    for consumed, cells, problem in _quoted_records(lines, delimiter):
        width = width or len(cells)
        texts = [line.rstrip("\r\n") for _, line in consumed]
        if problem or any(
            '"' in text and within_a_cell.search(text.replace('""', "")) for text in texts
        ):
            return False
        # A bad row of several lines, one of which is a row by itself.
        if len(cells) != width and any(text.count(delimiter) == width - 1 for text in texts[1:]):
            return False
    return True
