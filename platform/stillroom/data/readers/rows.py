"""Files → rows: JSONL, JSON, CSV, TSV, Parquet and data sets of the hub.

Only a line is held in memory, never a file. Every error names the file and the line.
"""

import codecs
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from stillroom.data.readers.locations import (
    HUB_PREFIX,
    file_format,
    open_seekable,
    open_stream,
    parse_hub_location,
)
from stillroom.data.readers.records import OnBadRow, raise_bad_row
from stillroom.data.readers.tables import Row, table_rows
from stillroom.errors import UserError, one_line, quote

SUPPORTED_FORMATS = ".jsonl, .json, .csv, .tsv (each perhaps .gz or .zst), .parquet or .arrow"

MAX_LINE_BYTES = 1 << 27  # a longer line means a file without line ends
ARROW_FILE = b"ARROW1"  # first bytes of a file; a stream has none
JSON_BLOCK_BYTES = 1 << 20  # of a .json, read at a time
WRAPPERS = ("data", "rows", "examples", "records", "train")  # names around the rows of a .json
JSON_SEPARATORS = re.compile(r"[\s,\[\]]*")  # between the values of a .json


def read_rows(
    file: str, *, columns: Sequence[str] | None = None, on_bad_row: OnBadRow = raise_bad_row
) -> Iterator[Row]:
    """The rows of a file, or of a data set of the hub.

    Args:
        columns: names of the columns of a .csv or .tsv without a header and without quotes.
        on_bad_row: called with the error of a row; if it returns, the row is skipped.

    Raises:
        UserError: when there is no row, or the file cannot be read.
    """
    first_error: UserError | None = None

    def note(error: UserError) -> None:
        nonlocal first_error
        first_error = first_error or error
        on_bad_row(error)

    any_row = False
    for row in _rows(file, columns, note):
        any_row = True
        yield row
    if not any_row:
        raise no_rows_error(file, first_error)


def no_rows_error(file: str, first_error: UserError | None) -> UserError:
    """The error for a file without a good row: the file, or its format, is wrong as a whole.

    Args:
        first_error: of the first bad row; None if there was no row at all.
    """
    if first_error is None:
        return UserError(file, "is empty", "Give at least one row")
    problem = f"has no valid row; the first, {first_error.where}, {first_error.problem}"
    return UserError(file, problem, first_error.fix)


def _rows(file: str, columns: Sequence[str] | None, on_bad_row: OnBadRow) -> Iterator[Row]:
    extension = file_format(file).extension
    if file.startswith(HUB_PREFIX):
        return _hub_rows(file)
    if extension == ".jsonl":
        return _json_rows(file, on_bad_row)
    if extension == ".json":
        return _json_values(file, on_bad_row)
    if extension in (".csv", ".tsv"):
        delimiter = "\t" if extension == ".tsv" else ","
        if columns is None:
            lines = functools.partial(read_lines, file, keep_ends=True)
            return table_rows(file, delimiter, lines, on_bad_row)
        return _unquoted_rows(file, delimiter, columns, on_bad_row)
    if extension == ".parquet":
        return _parquet_rows(file)
    if extension == ".arrow":
        return _arrow_rows(file)
    raise UserError(file, "has no format that can be read", f"Use {SUPPORTED_FORMATS}")


def read_lines(
    file: str, on_bad_row: OnBadRow = raise_bad_row, *, keep_ends: bool = False
) -> Iterator[tuple[str, str]]:
    """(where, line) of a text file, without byte order mark.

    Only a line feed ends a line: U+2028 and similar ones are characters of a text. In a file
    without any line feed carriage returns do, as on old Macs.

    Args:
        keep_ends: whether lines keep their line ends.
    """
    number = 0
    for line in _lines(file):
        number += 1
        where = f"{file}:{number}"
        if line is None:
            fix = "Break it up, or correct the line ends"
            on_bad_row(UserError(where, f"is longer than {MAX_LINE_BYTES >> 20} MiB", fix))
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 ({error.reason} at byte {error.start})"
            on_bad_row(UserError(where, problem, "Save the file as UTF-8"))
            continue
        yield where, text if keep_ends else text.rstrip("\r\n")


def _lines(file: str) -> Iterator[bytes | None]:
    """The lines of a file with their ends; None for one that is too long."""
    with open_stream(file) as opened:
        first = True
        while line := opened.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(opened)
                yield None
            elif first and b"\r" in line and not line.endswith(b"\n"):  # the whole file
                yield from (part + b"\n" for part in line.removesuffix(b"\r").split(b"\r"))
            else:
                yield line
            first = False


def _skip_line(opened: BinaryIO) -> None:
    while (part := opened.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _json_rows(file: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    for where, line in read_lines(file, on_bad_row):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            on_bad_row(UserError(where, f"is not JSON: {error}", "Correct or remove the line"))
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            on_bad_row(UserError(where, "is not a JSON object", 'Write it as {"field": "text", …}'))


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a name comes twice: JSON's readers would drop the first value."""
    row = dict(fields)
    if len(row) < len(fields):
        names = [name for name, _ in fields]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {quote(repeated)} twice")
    return row


def _json_values(file: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Objects of a JSON list, or of several JSON values in a row, as they are read."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    unread = ""
    line = 1  # of the first unread character
    depth = 0  # of lists that are not closed yet
    tried = 0  # unread characters that were not yet a whole value
    for block, last in _text_blocks(file):
        unread += block
        if len(unread) < 2 * tried and not last:
            continue  # read more first: a long value should be parsed only a few times
        position, tried = 0, 0
        # Commas and brackets between values are skipped without checking their order.
        while (start := JSON_SEPARATORS.match(unread, position).end()) < len(unread):  # type: ignore[union-attr]
            depth += _opened_lists(unread[position:start])
            line += unread.count("\n", position, start)
            position, where = start, f"{file}:{line}"
            try:
                value, end = decoder.raw_decode(unread, start)
            except (ValueError, RecursionError) as error:
                if not last and _may_be_cut_off(error, len(unread) - start, len(unread)):
                    tried = len(unread) - start
                    break
                raise UserError(where, f"is not JSON: {error}", "Correct the file") from error
            if isinstance(value, dict):
                if wrapper := _list_of_rows(value):
                    problem = f"has its rows in {wrapper!r}"
                    fix = "Write them as a list, or one object a line in a .jsonl"
                    raise UserError(where, problem, fix)
                yield where, value
            elif end == len(unread) and not last:
                break  # a number may have more digits
            else:
                on_bad_row(
                    UserError(where, "is not a JSON object", 'Write it as {"field": "text", …}')
                )
            line += unread.count("\n", start, end)
            position = end
        else:
            depth += _opened_lists(unread[position:])
            line += unread.count("\n", position)
            position = len(unread)
        unread = unread[position:]
    if depth:
        raise UserError(f"{file}:{line}", "ends within a list: it is cut off", "Write it again")


def _opened_lists(separators: str) -> int:
    return separators.count("[") - separators.count("]")


def _list_of_rows(value: dict[str, Any]) -> str | None:
    """The field of an object around rows, such as {"data": [{…}, …]}, that has them."""
    for name in WRAPPERS:
        rows = value.get(name)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return name
    return None


def _text_blocks(file: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it is the last) of each block of a file."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    with open_stream(file) as opened:
        while True:
            block = opened.read(JSON_BLOCK_BYTES)
            try:
                yield decode.decode(block, final=not block), not block
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8 ({error.reason})"
                raise UserError(file, problem, "Save the file as UTF-8") from error
            if not block:
                return


def _may_be_cut_off(error: Exception, size: int, end: int) -> bool:
    """Whether a JSON value may be invalid only because the rest of it is not read yet."""
    if not isinstance(error, json.JSONDecodeError) or size > MAX_LINE_BYTES:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= end - 16


def _unquoted_rows(
    file: str, delimiter: str, columns: Sequence[str], on_bad_row: OnBadRow
) -> Iterator[Row]:
    for where, line in read_lines(file, on_bad_row):
        cells = line.split(delimiter)
        if len(cells) == len(columns):
            yield where, dict(zip(columns, cells, strict=True))
        else:
            problem = f"has {len(cells)} fields, not {len(columns)} ({', '.join(columns)})"
            on_bad_row(UserError(where, problem, "Correct or remove the line"))


def _parquet_rows(file: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    with open_seekable(file) as opened:
        try:
            # Buffered: else whole column chunks are read, which may be as large as the file.
            parquet = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
            for batch in parquet.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (pa.ArrowException, ValueError) as error:
            raise UserError(file, f"cannot be read: {error}", "Check the file") from error


def _arrow_rows(file: str) -> Iterator[Row]:
    """Rows of an Arrow file, or of a stream of batches as `datasets` saves them."""
    import pyarrow as pa

    number = 0
    with open_seekable(file) as opened:
        try:
            if opened.read(len(ARROW_FILE)) == ARROW_FILE:
                reader = pa.ipc.open_file(opened)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                opened.seek(0)
                batches = iter(pa.ipc.open_stream(opened))
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (pa.ArrowException, ValueError) as error:
            raise UserError(file, f"cannot be read: {error}", "Check the file") from error


def _hub_rows(location: str) -> Iterator[Row]:
    dataset = parse_hub_location(location)
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            location, "needs the package datasets", "Run: pip install 'stillroom[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(
            dataset.name,
            dataset.config,
            split=dataset.split,
            revision=dataset.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            yield f"{location}, row {number}", row
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            location,
            f"cannot be read: {one_line(error)}",
            "Correct hub:NAME@REVISION:CONFIG:SPLIT, or download the files and name those",
        ) from error
