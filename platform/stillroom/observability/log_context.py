"""Fields of every log line besides its message: the run, the stage and the worker.

Lines are text. With STILLROOM_LOGS=json they are JSON with `time` (seconds since 1970), `level`,
`logger`, `message` and, where known, `run`, `stage`, `rank` and `worker`; libraries' lines are then
JSON too.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from stillroom.errors import json_line

FORMAT_VARIABLE = "STILLROOM_LOGS"

# One set for the process: it works for one run, and there on one stage.
_fields: dict[str, Any] = {}


def json_lines_enabled() -> bool:
    """Whether log lines are JSON."""
    return os.environ.get(FORMAT_VARIABLE) == "json"


def current_fields() -> dict[str, Any]:
    """A copy of the fields that this process's log lines carry now."""
    return dict(_fields)


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Adds fields to the log lines written inside the block."""
    before = current_fields()
    _fields.update(fields)
    try:
        yield
    finally:
        _fields.clear()
        _fields.update(before)


class LogContext(NamedTuple):
    """Logging context that the driver passes to its workers."""

    fields: dict[str, Any]
    json_lines: bool


def capture_context() -> LogContext:
    """This process's logging context, for `configure_worker_logging` in its workers."""
    return LogContext(current_fields(), json_lines_enabled())


class JsonFormatter(logging.Formatter):
    """A JSON document per line. A record's `extra={"fields": …}` override the other fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)


def parse_json_line(line: str) -> dict[str, Any] | None:
    """The fields of a line that `JsonFormatter` wrote; None for any other line."""
    if not line.startswith('{"time": '):
        return None
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def configure_worker_logging(context: LogContext, **fields: Any) -> None:
    """Sets up a worker's logging: the driver's fields and these, to standard output.

    Ray stores a worker's standard output and forwards it to the driver, with the worker's name
    before each line. A text line is therefore only the message; workers other than the first add
    their rank.
    """
    _fields.clear()
    _fields.update(context.fields | fields)
    rank = fields.get("rank", 0)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s" if rank else "%(message)s"))
    package = logging.getLogger("stillroom")
    package.setLevel(logging.INFO)
    package.handlers[:] = [handler]  # replaces the handler of an earlier stage in this process
    package.propagate = False
    if context.json_lines:
        handler.setFormatter(JsonFormatter())
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)
        redirect_library_logs("ray")


def redirect_library_logs(library: str) -> None:
    """Sends a library's log lines through the root logger's JSON handler, and nowhere else."""
    log = logging.getLogger(library)
    log.handlers.clear()
    log.propagate = True
    root = logging.getLogger()
    json_handlers = [h for h in root.handlers if isinstance(h.formatter, JsonFormatter)]
    root.handlers[:] = json_handlers[-1:]
