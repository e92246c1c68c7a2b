"""A source of the recipe → its parts → their pairs, passages and conversations."""

from collections.abc import Iterator
from dataclasses import dataclass

from stillroom.config.base import Kind
from stillroom.config.corpus import Beir, Corpus, Docstrings, Documents, Files, MsMarco, Source
from stillroom.data.readers.docstrings import docstring_pairs
from stillroom.data.readers.documents import read_document
from stillroom.data.readers.files import read_conversations, read_pairs, read_passages
from stillroom.data.readers.locations import DOCUMENTS, find_files, size
from stillroom.data.readers.qrels import read_collection, read_id_triples, read_judged
from stillroom.data.readers.records import Conversation, LeftOut, Pair
from stillroom.encoders.tokens.count import token_counter
from stillroom.storage.artifacts import Artifact

__all__ = ["Part", "Source", "conversations", "pairs", "parts", "passages"]


@dataclass(frozen=True)
class Part:
    """What one worker reads of a source: a file of one kind, or all of a kind where it takes more
    than a file. Plain data, which pickles."""

    source: Source
    kind: Kind
    file: str | None = None

    @property
    def bytes(self) -> int:
        """How much there is to read; 0 of docstrings, which their own processes read."""
        return sum(map(size, self.source.places() if self.file is None else (self.file,)))


def parts(source: Source) -> list[Part]:
    """Everything a source has, in its order.

    Raises:
        UserError: when a place that it names holds nothing.
    """
    if isinstance(source, Files):
        named: list[tuple[Kind, tuple[str, ...]]] = [
            ("pairs", source.pairs),
            ("passages", source.passages),
            ("conversations", source.conversations),
        ]
        return [
            Part(source, kind, file)
            for kind, places in named
            for place in places
            for file in find_files(place)
        ]
    if isinstance(source, Documents):
        files = [file for place in source.passages for file in find_files(place, DOCUMENTS)]
        return [Part(source, "passages", file) for file in files]
    if isinstance(source, Docstrings):
        return [Part(source, "pairs")]
    return [Part(source, "pairs"), Part(source, "passages")]


def pairs(of: Source | Part, left_out: LeftOut | None = None) -> Iterator[Pair]:
    """Pairs of a source, or of a part of it.

    Args:
        left_out: counts what is left out. With `on_error: skip` wrong rows are; else the first of
            them is an error.

    Raises:
        UserError: at a wrong row, or when there is none.
    """
    for part in _parts(of, "pairs"):
        source, rest = part.source, _noted(part.source, left_out)
        if isinstance(source, Docstrings):
            yield from docstring_pairs(source.packages, min_passage=source.min_passage_characters)
        elif isinstance(source, Files):
            assert part.file is not None
            yield from read_pairs(
                part.file,
                layout=None if source.format == "files" else source.format,
                min_score=source.min_score,
                instruction=source.instruction,
                left_out=rest,
            )
        elif isinstance(source, MsMarco) and source.triples is not None:
            yield from read_id_triples(
                collection=source.collection,
                queries=source.queries,
                triples=source.triples,
                left_out=rest,
            )
        elif isinstance(source, Beir | MsMarco):
            assert source.qrels is not None
            yield from read_judged(
                collection=source.collection,
                queries=source.queries,
                qrels=source.qrels,
                left_out=rest,
            )


def passages(of: Source | Part, left_out: LeftOut | None = None) -> Iterator[str]:
    """Texts without a query; the same of them."""
    for part in _parts(of, "passages"):
        source, rest = part.source, _noted(part.source, left_out)
        if isinstance(source, Documents):
            assert part.file is not None
            yield from read_document(
                part.file,
                count=token_counter(source.tokenizer),
                most=source.passage_tokens,
                overlap=source.overlap_tokens,
                left_out=rest,
            )
        elif isinstance(source, Beir | MsMarco):
            yield from read_collection(source.collection, rest)
        elif part.file is not None:
            yield from read_passages(part.file, left_out=rest)


def conversations(of: Source | Part, left_out: LeftOut | None = None) -> Iterator[Conversation]:
    """The same of conversations."""
    for part in _parts(of, "conversations"):
        if part.file is not None:
            yield from read_conversations(part.file, left_out=_noted(part.source, left_out))


def _parts(of: Source | Part, kind: Kind) -> list[Part]:
    found = [of] if isinstance(of, Part) else parts(of)
    return [part for part in found if part.kind == kind]


def _noted(source: Source, left_out: LeftOut | None) -> LeftOut:
    """Counts for the caller, as the source says of wrong rows."""
    kept = left_out or LeftOut()
    skip = not isinstance(source, Docstrings) and source.on_error == "skip"
    return LeftOut(kept.counts, kept.wrong, skip)


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
