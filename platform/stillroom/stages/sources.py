"""A source of the recipe → its pairs, passages and conversations, whatever its format."""

from collections.abc import Iterator
from pathlib import Path

from stillroom.artifacts import Artifact
from stillroom.config import Corpus, Docstrings, Files
from stillroom.text.docstrings import docstring_pairs
from stillroom.text.formats import (
    Conversation,
    Pair,
    read_conversations,
    read_pairs,
    read_passages,
)

Source = Docstrings | Files


def pairs(source: Source) -> Iterator[Pair]:
    if isinstance(source, Docstrings):
        yield from docstring_pairs(source.packages, min_passage=source.min_passage_characters)
    else:
        for path in source.pairs:
            yield from read_pairs(Path(path))


def passages(source: Source) -> Iterator[str]:
    """Texts without a query."""
    for path in source.passages if isinstance(source, Files) else ():
        yield from read_passages(Path(path))


def conversations(source: Source) -> Iterator[Conversation]:
    for path in source.conversations if isinstance(source, Files) else ():
        yield from read_conversations(Path(path))


def with_synthetic(section: Corpus, made: Artifact | None) -> Corpus:
    """The section with what a language model wrote as one more source, of files."""
    if made is None or section.synthetic is None:
        return section
    written = Files(
        format="files",
        pairs=(str(made.path / "pairs.jsonl"),),
        prompts=section.synthetic.prompts,
        symmetric=section.synthetic.symmetric,
    )
    return section.model_copy(update={"sources": {**section.sources, "synthetic": written}})
