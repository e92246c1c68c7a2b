"""Log lines as text and as JSON."""

import json
import logging
import subprocess
import sys

from stillroom.observability.log_context import (
    JsonFormatter,
    current_fields,
    log_fields,
    parse_json_line,
)


def line(message, *args, **more):
    record = logging.LogRecord("stillroom.x", logging.WARNING, "f.py", 1, message, args, None)
    vars(record).update(more)
    return JsonFormatter().format(record)


def test_a_line_carries_the_fields_of_the_blocks_around_it():
    with log_fields(run="r"):
        with log_fields(stage="teacher/x-1"):
            inside = json.loads(line("%d of %d\nmore", 1, 2))
        assert current_fields() == {"run": "r"}
        assert "stage" not in json.loads(line("later"))
    assert current_fields() == {}
    assert isinstance(inside.pop("time"), float)
    assert inside == {
        "level": "warning", "logger": "stillroom.x", "message": "1 of 2\nmore", "run": "r",
        "stage": "teacher/x-1",
    }  # fmt: skip
    assert "\n" not in line("a\nb")


def test_a_worker_s_line_keeps_its_own_fields_when_the_driver_logs_it():
    with log_fields(run="r", stage="s", rank=3):
        sent = line("step 1")
    with log_fields(run="r"):
        relayed = json.loads(line(sent, fields={"worker": "h 1"} | parse_json_line(sent)))
        other = line(
            "a library's own {", fields={"worker": "h 1"} | (parse_json_line("own {") or {})
        )
    assert relayed == json.loads(sent) | {"worker": "h 1"}
    assert json.loads(other)["message"] == "a library's own {"
    assert parse_json_line('{"time": 1') is None


def worker_output(json_lines):
    """Lines that a worker of rank 1 writes: our own, a warning, and a library's."""
    code = (
        "import logging, warnings; from stillroom.observability import log_context\n"
        f"context = log_context.LogContext({{'run': 'r', 'stage': 's'}}, {json_lines})\n"
        "log_context.configure_worker_logging(context, rank=1)\n"
        "logging.getLogger('stillroom.training.driver').info('own'); warnings.warn('a warning')\n"
        "logging.getLogger('ray').warning('library')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return process.stdout.splitlines()


def test_a_worker_s_lines_are_text_with_its_rank_or_json_with_all_fields():
    assert worker_output(False) == ["rank 1: own"]
    lines = [json.loads(line) for line in worker_output(True)]
    assert {(line["run"], line["stage"], line["rank"]) for line in lines} == {("r", "s", 1)}
    ours, warned, library = lines
    assert (ours["message"], library["message"]) == ("own", "library")
    assert "UserWarning: a warning" in warned["message"]
