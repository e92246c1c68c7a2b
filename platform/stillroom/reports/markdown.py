"""Texts in Markdown: none turns, ends or formats what stands beside it."""

import re
from collections.abc import Sequence

from stillroom.errors import isolate, without_controls


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a table; a text in it may have any characters."""
    shown = (isolate(_line(cell)).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(shown)} |"


def markdown_code(text: str) -> str:
    """A text as code within a line, as it is but for what cannot be shown."""
    shown = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _line(text: str) -> str:
    return " ".join(without_controls(text).splitlines())
