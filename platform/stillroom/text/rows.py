"""Files → rows. A line is held in memory, never a file; every error names the file and the line."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from stillroom.errors import UserError
from stillroom.text.places import HUB, form_of, hub_name, opened_for_reading, opened_for_seeking
from stillroom.text.records import Refuse, fail

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its fields
FORMATS = ".jsonl, .json, .csv, .tsv or .parquet; all but the last may end in .gz or .zst too"
LONGEST_LINE = 1 << 27  # bytes; a longer one is a file without line ends
csv.field_size_limit(LONGEST_LINE)


def read_rows(
    file: str, *, columns: Sequence[str] | None = None, refuse: Refuse = fail
) -> Iterator[Row]:
    """The rows of a file, or of a data set of the hub.

    Args:
        columns: names of the columns of a .csv or .tsv that has no header, and whose cells are
            not quoted.
        refuse: is told of what is no row; where it returns, the next follows.

    Raises:
        UserError: when there is no row, or the file cannot be read.
    """
    kind = form_of(file).kind
    if file.startswith(HUB):
        rows = _hub_rows(file)
    elif kind == ".jsonl":
        rows = _json_rows(file, refuse)
    elif kind == ".json":
        rows = _json_values(file, refuse)
    elif kind in (".csv", ".tsv"):
        delimiter = "\t" if kind == ".tsv" else ","
        if columns is None:
            rows = _table_rows(file, delimiter, refuse)
        else:
            rows = _plain_rows(file, delimiter, columns, refuse)
    elif kind == ".parquet":
        rows = _parquet_rows(file)
    else:
        raise UserError(file, "is of no format that we read", f"Use {FORMATS}")
    return _some(rows, file)


def read_lines(file: str, refuse: Refuse = fail) -> Iterator[tuple[str, str]]:
    """(where, line), the line's end and a byte order mark taken off.

    Only a line feed ends a line: U+2028 and its like are letters of a text.
    """
    number = 0
    with opened_for_reading(file) as opened:
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{file}:{number}"
            if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                _finish_line(opened)
                fix = "Break it up, or mend the line ends"
                refuse(UserError(where, f"is longer than {LONGEST_LINE >> 20} MiB", fix))
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as fault:
                problem = f"is not UTF-8 ({fault.reason} at byte {fault.start})"
                refuse(UserError(where, problem, "Save the file as UTF-8"))
                continue
            yield where, text.rstrip("\r\n")


def _finish_line(opened: BinaryIO) -> None:
    while (part := opened.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _some(rows: Iterable[Row], file: str) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(file, "is empty", "Give at least one row")


# --- JSON -----------------------------------------------------------------------------------


def _json_rows(file: str, refuse: Refuse) -> Iterator[Row]:
    for where, line in read_lines(file, refuse):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:
            refuse(UserError(where, f"is no JSON: {fault}", "Mend or remove the line"))
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            refuse(UserError(where, "is no JSON object", 'Write it as {"field": "text", …}'))


def _json_values(file: str, refuse: Refuse) -> Iterator[Row]:
    """Objects of one JSON list, or one after another, as they come."""
    decoder = json.JSONDecoder()
    unread = ""  # what stands there of the value that begins at `line`
    line = 1
    for block, last in _decoded(file):
        unread += block
        while True:
            # Commas and brackets between values are let go by: it is values that are wanted.
            rest = unread.lstrip(" \t\r\n,[]")
            line += unread.count("\n", 0, len(unread) - len(rest))
            unread = rest
            if not unread:
                break
            try:
                value, end = decoder.raw_decode(unread)
            except (ValueError, RecursionError) as fault:
                if not last and _may_go_on(fault, unread):
                    break
                where = f"{file}:{line}"
                raise UserError(where, f"is no JSON: {fault}", "Mend the file") from fault
            if end == len(unread) and not last and not isinstance(value, dict):
                break  # a number may go on
            if isinstance(value, dict):
                yield f"{file}:{line}", value
            else:
                where = f"{file}:{line}"
                refuse(UserError(where, "is no JSON object", 'Write it as {"field": "text", …}'))
            line += unread.count("\n", 0, end)
            unread = unread[end:]


def _decoded(file: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it is the last) in growing blocks, so that a long value is tried seldom."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    size = 1 << 16
    with opened_for_reading(file) as opened:
        while True:
            block = opened.read(size)
            try:
                yield decode.decode(block, final=not block), not block
            except UnicodeDecodeError as fault:
                problem = f"is not UTF-8 ({fault.reason})"
                raise UserError(file, problem, "Save the file as UTF-8") from fault
            if not block:
                return


def _may_go_on(fault: Exception, text: str) -> bool:
    """Whether a value that cannot be read may only be cut off by the end of what was read."""
    if not isinstance(fault, json.JSONDecodeError) or len(text) > LONGEST_LINE:
        return False
    return fault.msg.startswith("Unterminated string") or fault.pos >= len(text) - 16


# --- tables ---------------------------------------------------------------------------------


def _table_rows(file: str, delimiter: str, refuse: Refuse) -> Iterator[Row]:
    fed: list[str] = []  # where the lines of the row stand: a quoted field may hold line ends

    def feed() -> Iterator[str]:
        for where, line in read_lines(file, refuse):
            fed.append(where)
            yield line + "\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        fed.clear()
        try:
            cells = next(reader, None)
        except csv.Error as fault:
            problem, fix = f"is no row: {fault}", "Mend its quotes"
            refuse(UserError(fed[0] if fed else file, problem, fix))
            continue
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if not names:
            names = cells
        elif len(cells) == len(names):
            yield fed[0], dict(zip(names, cells, strict=True))
        else:
            problem = f"has {len(cells)} fields, and not the {len(names)} of the header"
            refuse(UserError(fed[0], problem, "Quote fields that hold the delimiter"))


def _plain_rows(file: str, delimiter: str, columns: Sequence[str], refuse: Refuse) -> Iterator[Row]:
    for where, line in read_lines(file, refuse):
        cells = line.split(delimiter)
        if len(cells) == len(columns):
            yield where, dict(zip(columns, cells, strict=True))
        else:
            problem = f"has {len(cells)} fields, not {len(columns)} ({', '.join(columns)})"
            refuse(UserError(where, problem, "Mend or remove the line"))


def _parquet_rows(file: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with opened_for_seeking(file) as opened:
        try:
            # Buffered: otherwise whole column chunks, and they may be as large as the file.
            parquet = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
            for batch in parquet.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (pa.ArrowException, ValueError) as fault:
            raise UserError(file, f"cannot be read: {fault}", "Look at the file") from fault


# --- the hub --------------------------------------------------------------------------------


def _hub_rows(place: str) -> Iterator[Row]:
    wanted = hub_name(place)
    try:
        import datasets
    except ImportError as fault:
        raise UserError(
            place, "needs the package datasets", "Run: pip install 'stillroom[hub]'"
        ) from fault
    try:
        rows = datasets.load_dataset(
            wanted.name,
            wanted.config,
            split=wanted.split,
            revision=wanted.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            yield f"{place}, row {number}", row
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as fault:
        reason = " ".join(str(fault).split())
        raise UserError(
            place,
            f"cannot be read: {reason}",
            "Correct hub:NAME@REVISION:CONFIG:SPLIT, or download the files and name those",
        ) from fault
