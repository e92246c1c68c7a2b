"""What every line of a log says beside its message: the run, the stage and the worker.

Lines are text, or JSON where STILLROOM_LOGS is `json`: then with `time` (seconds since 1970),
`level`, `logger`, `message` and, as far as they are known, `run`, `stage`, `rank` and `worker`, and
lines of libraries are as well.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

VARIABLE = "STILLROOM_LOGS"

# A process works for one run, and in that at one stage.
_told: dict[str, Any] = {}


def as_json() -> bool:
    return os.environ.get(VARIABLE) == "json"


def told() -> dict[str, Any]:
    """What this process's lines say now."""
    return dict(_told)


@contextmanager
def telling(**fields: Any) -> Iterator[None]:
    """Lines say these, too, meanwhile."""
    before = told()
    _told.update(fields)
    try:
        yield
    finally:
        _told.clear()
        _told.update(before)


class Said(NamedTuple):
    """What a driver tells its workers, so that their lines are like its own."""

    fields: dict[str, Any]
    json_lines: bool


def said() -> Said:
    return Said(told(), as_json())


class JsonLines(logging.Formatter):
    """A JSON document a line. `extra={"fields": …}` of a record go before all else."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_told,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def parsed(line: str) -> dict[str, Any] | None:
    """The fields of a line that `JsonLines` wrote; None of any other."""
    if not line.startswith('{"time": '):
        return None
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def begin(by: Said, **fields: Any) -> None:
    """In a worker: its lines say what the driver's do and these fields, and go to its standard
    output, which Ray keeps and brings to the driver.

    A line of text is the message alone, for Ray puts before it who says it; of all workers but the
    first, the rank as well.
    """
    _told.clear()
    _told.update(by.fields | fields)
    rank = fields.get("rank", 0)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s" if rank else "%(message)s"))
    ours = logging.getLogger("stillroom")
    ours.setLevel(logging.INFO)
    ours.handlers[:] = [handler]  # alone, where the process worked for another stage before
    ours.propagate = False
    if by.json_lines:
        handler.setFormatter(JsonLines())
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)
        take_over("ray")


def take_over(library: str) -> None:
    """Where lines are JSON: has a library's go where ours do, in place of where it put them."""
    log = logging.getLogger(library)
    log.handlers.clear()
    log.propagate = True
    every = logging.getLogger()
    ours = [one for one in every.handlers if isinstance(one.formatter, JsonLines)]
    every.handlers[:] = ours[-1:]
