"""What lines say, as text and as JSON."""

import json
import logging
import subprocess
import sys

from stillroom.observability.log_context import JsonLines, parsed, telling, told


def line(message, *args, **more):
    record = logging.LogRecord("stillroom.x", logging.WARNING, "f.py", 1, message, args, None)
    vars(record).update(more)
    return JsonLines().format(record)


def test_a_line_says_what_is_told_of_its_process_meanwhile():
    with telling(run="r"):
        with telling(stage="teacher/x-1"):
            inside = json.loads(line("%d of %d\nmore", 1, 2))
        assert told() == {"run": "r"}
        assert "stage" not in json.loads(line("later"))
    assert told() == {}
    assert isinstance(inside.pop("time"), float)
    assert inside == {
        "level": "warning", "logger": "stillroom.x", "message": "1 of 2\nmore", "run": "r",
        "stage": "teacher/x-1",
    }  # fmt: skip
    assert "\n" not in line("a\nb")


def test_a_worker_s_line_keeps_its_own_fields_on_its_way_through_the_driver():
    with telling(run="r", stage="s", rank=3):
        sent = line("step 1")
    with telling(run="r"):
        brought = json.loads(line(sent, fields={"worker": "h 1"} | parsed(sent)))
        other = line("a library's own {", fields={"worker": "h 1"} | (parsed("own {") or {}))
    assert brought == json.loads(sent) | {"worker": "h 1"}
    assert json.loads(other)["message"] == "a library's own {"
    assert parsed('{"time": 1') is None


def worker(json_lines):
    """What a worker of rank 1 writes of its own, of a library and of a warning."""
    code = (
        "import logging, warnings; from stillroom.observability.log_context import Said, begin\n"
        f"begin(Said({{'run': 'r', 'stage': 's'}}, {json_lines}), rank=1)\n"
        "logging.getLogger('stillroom.training.driver').info('mine'); warnings.warn('its')\n"
        "logging.getLogger('ray').warning('theirs')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_worker_s_lines_are_text_with_its_rank_or_json_with_all_that_is_known():
    assert worker(False) == ["rank 1: mine"]
    lines = [json.loads(one) for one in worker(True)]
    assert {(one["run"], one["stage"], one["rank"]) for one in lines} == {("r", "s", 1)}
    mine, warned, theirs = lines
    assert (mine["message"], theirs["message"]) == ("mine", "theirs")
    assert "UserWarning: its" in warned["message"]
