"""Finds out which weights a folder lacks while another library loads it with transformers.

transformers draws such weights at random, and only warns.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

# A line of the table that transformers logs: the weight's name, and what became of it.
MISSING_LINE = re.compile(r"^(\S+)\s*\|[^|]*MISSING", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def missing_weights() -> Iterator[list[str]]:
    """A list that, after the block, holds the names of weights that were missing inside it.

    A pooler, which no embedder uses, is not counted. Warnings and progress bars of transformers are
    not printed.
    """
    library = transformers_logging.get_logger("transformers")
    report = _Report()
    level, handlers = library.level, library.handlers
    transformers_logging.disable_progress_bar()
    library.handlers = [report]
    library.setLevel(logging.WARNING)
    names: list[str] = []
    try:
        yield names
    finally:
        library.handlers = handlers
        library.setLevel(level)
        names += [name for name in report.missing if "pooler" not in name]


class _Report(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.missing += MISSING_LINE.findall(COLOURS.sub("", record.getMessage()))
