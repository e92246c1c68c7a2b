"""Texts cannot control the terminal that they are shown on."""

import io
import json
import logging
import sys
from unicodedata import category, east_asian_width

import pytest
import regex
from hypothesis import given, settings
from rich.logging import RichHandler
from rich.table import Table

from stillroom.cli.app import SafeConsole, print_table
from stillroom.errors import CONTROL, json_line
from support.in_process_cli import run_command
from support.scripts import TEXTS

# A window title, a cleared screen, CSI in one character, backspaces, and reversed letters.
HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\x08\x08e\u202ef\rg"
CONTROLS = ["\x1b", "\x07", "\x9b", "\x08", "\u202e", "\r"]


@pytest.fixture
def console():
    return SafeConsole(file=io.StringIO(), emoji=False, width=100)


def shown_by(console):
    text = console.file.getvalue()
    assert [control for control in CONTROLS if control in text] == []
    assert "owned" in text
    return text


def test_printed_text_has_no_control_characters(console):
    console.print(HOSTILE, markup=False)
    console.print(f"[bold]{HOSTILE}[/]")
    assert shown_by(console).count("owned") == 2


def test_a_table_s_cells_title_and_header_have_no_control_characters(console):
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    assert shown_by(console).count("owned") == 3


@settings(deadline=None)
@given(TEXTS)
def test_a_text_in_any_script_can_be_printed_and_controls_nothing(text):
    console = SafeConsole(file=io.StringIO(), emoji=False, width=100)
    console.print(text, markup=False)
    shown = console.file.getvalue()
    # What is isolated ends where it began.
    assert not CONTROL.search(regex.sub("\u2068[^\u2068\u2069\n]*\u2069", "", shown))
    assert shown.encode()


def test_a_cell_from_right_to_left_turns_neither_its_neighbours_nor_the_order_of_columns(
    console, monkeypatch
):
    monkeypatch.setattr(sys.modules["stillroom.cli.app"], "out", console)
    print_table(["field", "rows"], [["مجموعة 12", "34"], ["a\u202eb\u2069", "5"]])
    lines = console.file.getvalue().splitlines()
    assert lines[3] == "│ \u2068مجموعة 12\u2069 │ 34   │"
    assert lines[4] == "│ a�b�      │ 5    │"


def test_a_name_from_right_to_left_does_not_turn_the_message_around_it(console):
    console.print("مُحَمَّدٌ.jsonl: line 3, دليل 4: \u202ewrong \u2067", soft_wrap=True)
    shown = console.file.getvalue()
    assert shown == "\u2068مُحَمَّدٌ\u2069.jsonl: line 3, \u2068دليل\u2069 4: �wrong �\n"


def test_columns_are_aligned_by_the_width_of_characters(console):
    table = Table("text", "number")
    for text in ("plain", "日本語のテキスト", "ภาษาไทยที่", "e\u0301te\u0301"):
        table.add_row(text, "1")
    console.print(table)
    lines = console.file.getvalue().splitlines()

    def cells(line):
        wide = sum(east_asian_width(letter) in "WF" for letter in line)
        return len(line) + wide - sum(category(letter) == "Mn" for letter in line)

    assert "日本語のテキスト" in lines[4]
    assert len(set(map(cells, lines))) == 1


def test_a_line_of_json_is_readable_and_controls_nothing():
    document = {"text": f"水 {HOSTILE}\ud800\u2028"}
    line = json_line(document)
    assert "水" in line and not CONTROL.search(line) and json.loads(line) == document


def test_a_log_line_has_no_control_characters(console):
    RichHandler(console=console).emit(logging.makeLogRecord({"msg": HOSTILE}))
    shown_by(console)


def test_styles_and_line_breaks_are_kept():
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print("[red]a[/]\n\tb")
    assert console.file.getvalue() == "\x1b[31ma[0m\n        b\n".replace("[0m", "\x1b[0m")


def test_describing_a_corpus_and_reporting_its_errors_is_safe(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    row = {"query": HOSTILE, "passage": HOSTILE, "instruction": HOSTILE}
    pairs.write_text(json.dumps(row) + "\n")
    described = run_command("data", "describe", pairs, cwd=tmp_path)
    assert described.returncode == 0, described.stderr
    pairs.write_text(json.dumps({HOSTILE: 1}) + "\n")
    failed = run_command("data", "describe", pairs, cwd=tmp_path)
    assert failed.returncode != 0
    for output in (described.stdout, failed.stderr):
        assert [control for control in CONTROLS if control in output] == []
