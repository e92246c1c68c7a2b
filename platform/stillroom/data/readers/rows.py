"""Files → rows. A line is held in memory, never a file; every error names the file and the line."""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from stillroom.data.readers.locations import (
    HUB,
    form_of,
    hub_name,
    opened_for_reading,
    opened_for_seeking,
)
from stillroom.data.readers.records import Refuse, fail
from stillroom.errors import UserError

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its fields

FORMATS = ".jsonl, .json, .csv, .tsv or .parquet; all but the last may end in .gz or .zst too"

LONGEST_LINE = 1 << 27  # bytes; a longer one is a file without line ends

BLOCK = 1 << 20  # bytes of a .json at a time

BETWEEN = re.compile(r"[\s,\[\]]*")  # values of a .json

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
    refused: list[UserError] = []  # the first

    def note(fault: UserError) -> None:
        if not refused:
            refused.append(fault)
        refuse(fault)

    none = True
    for row in _rows(file, columns, note):
        none = False
        yield row
    if none and refused:
        # It is the file then, or what it is taken for, that is wrong.
        where, problem, fix = refused[0].args
        raise UserError(file, f"has no right row; the first, {where}, {problem}", fix)
    if none:
        raise UserError(file, "is empty", "Give at least one row")


def _rows(file: str, columns: Sequence[str] | None, refuse: Refuse) -> Iterator[Row]:
    kind = form_of(file).kind
    if file.startswith(HUB):
        return _hub_rows(file)
    if kind == ".jsonl":
        return _json_rows(file, refuse)
    if kind == ".json":
        return _json_values(file, refuse)
    if kind in (".csv", ".tsv"):
        delimiter = "\t" if kind == ".tsv" else ","
        if columns is None:
            return _table_rows(file, delimiter, refuse)
        return _plain_rows(file, delimiter, columns, refuse)
    if kind == ".parquet":
        return _parquet_rows(file)
    raise UserError(file, "is of no format that we read", f"Use {FORMATS}")


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
    unread = ""
    line = 1  # of the unread's first letter
    tried = 0  # letters that were not yet a whole value
    for block, last in _decoded(file):
        unread += block
        if len(unread) < 2 * tried and not last:
            continue  # so that a long value is tried a few times only
        at, tried = 0, 0
        # Commas and brackets between values are let go by: it is values that are wanted.
        while (begin := BETWEEN.match(unread, at).end()) < len(unread):  # type: ignore[union-attr]
            line += unread.count("\n", at, begin)
            at, where = begin, f"{file}:{line}"
            try:
                value, end = decoder.raw_decode(unread, begin)
            except (ValueError, RecursionError) as fault:
                if not last and _may_go_on(fault, len(unread) - begin, len(unread)):
                    tried = len(unread) - begin
                    break
                raise UserError(where, f"is no JSON: {fault}", "Mend the file") from fault
            if isinstance(value, dict):
                yield where, value
            elif end == len(unread) and not last:
                break  # a number may go on
            else:
                refuse(UserError(where, "is no JSON object", 'Write it as {"field": "text", …}'))
            line += unread.count("\n", begin, end)
            at = end
        else:
            line += unread.count("\n", at)
            at = len(unread)
        unread = unread[at:]


def _decoded(file: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it is the last) block by block."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    with opened_for_reading(file) as opened:
        while True:
            block = opened.read(BLOCK)
            try:
                yield decode.decode(block, final=not block), not block
            except UnicodeDecodeError as fault:
                problem = f"is not UTF-8 ({fault.reason})"
                raise UserError(file, problem, "Save the file as UTF-8") from fault
            if not block:
                return


def _may_go_on(fault: Exception, size: int, end: int) -> bool:
    """Whether a value that cannot be read may only be cut off by the end of what was read."""
    if not isinstance(fault, json.JSONDecodeError) or size > LONGEST_LINE:
        return False
    return fault.msg.startswith("Unterminated string") or fault.pos >= end - 16


def _table_rows(file: str, delimiter: str, refuse: Refuse) -> Iterator[Row]:
    fed: list[tuple[str, str]] = []  # the lines of a row: a quoted field may hold line ends

    def feed() -> Iterator[str]:
        for where, line in read_lines(file, refuse):
            fed.append((where, line))
            yield line + "\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        fed.clear()
        problem, cells = "", None
        try:
            cells = next(reader, None)
        except csv.Error as fault:
            problem = f"is no row: {fault}"
        if cells is None and not problem:
            return
        if not names:
            names = cells or []
            continue
        if cells and len(cells) != len(names):
            problem = f"has not the {len(names)} fields of the header, but {len(cells)}"
        # Many a .tsv is not quoted, and a quotation mark is a letter of its texts.
        plain = [(where, line.split(delimiter)) for where, line in fed]
        is_plain = delimiter == "\t" and all(len(found) == len(names) for _, found in plain)
        if is_plain and (problem or len(fed) > 1):
            yield from ((where, dict(zip(names, found, strict=True))) for where, found in plain)
        elif problem:
            refuse(UserError(fed[0][0] if fed else file, problem, "Quote its fields, or mend it"))
        elif cells:
            yield fed[0][0], dict(zip(names, cells, strict=True))


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
