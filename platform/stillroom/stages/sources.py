"""A source of the recipe → its parts → their pairs, passages and conversations."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.config import Docstrings, Files, Kind
from stillroom.text.docstrings import docstring_pairs
from stillroom.text.formats import (
    Conversation,
    Pair,
    read_conversations,
    read_pairs,
    read_passages,
)

Source = Docstrings | Files


@dataclass(frozen=True)
class Part:
    """What one process reads of a source: a file, or a whole environment's docstrings."""

    source: Source
    kind: Kind
    path: Path | None = None

    @property
    def bytes(self) -> int:
        """How much there is to read; 0 where it is no file."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0


def parts(source: Source) -> list[Part]:
    """In the order in which what they have counts as earlier."""
    if isinstance(source, Docstrings):
        return [Part(source, "pairs")]
    kinds: tuple[Kind, ...] = ("pairs", "passages", "conversations")
    return [Part(source, kind, Path(path)) for kind in kinds for path in getattr(source, kind)]


def pairs(part: Part) -> Iterator[Pair]:
    if isinstance(part.source, Docstrings):
        least = part.source.min_passage_characters
        yield from docstring_pairs(part.source.packages, min_passage=least)
    elif part.kind == "pairs" and part.path is not None:
        yield from read_pairs(part.path)


def passages(part: Part) -> Iterator[str]:
    """Texts without a query."""
    if part.kind == "passages" and part.path is not None:
        yield from read_passages(part.path)


def conversations(part: Part) -> Iterator[Conversation]:
    if part.kind == "conversations" and part.path is not None:
        yield from read_conversations(part.path)
