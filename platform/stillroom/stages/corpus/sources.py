"""Sources of a recipe → parts for workers → pairs, passages and conversations."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.config.base import DataKind
from stillroom.config.corpus import (
    BeirSource,
    Corpus,
    DocstringSource,
    DocumentSource,
    FileSource,
    MsMarcoSource,
    Source,
)
from stillroom.data.readers.docstrings import docstring_pairs
from stillroom.data.readers.documents import read_document
from stillroom.data.readers.files import read_conversations, read_pairs, read_passages
from stillroom.data.readers.locations import (
    DOCUMENT_EXTENSIONS,
    HUB_PREFIX,
    find_files,
    size_bytes,
)
from stillroom.data.readers.qrels import read_collection, read_id_triples, read_judged_pairs
from stillroom.data.readers.records import Conversation, Pair, SkippedRows
from stillroom.encoders.tokens.count import token_counter
from stillroom.storage.artifacts import Artifact


@dataclass(frozen=True)
class SourcePart:
    """A part of a source that one worker reads. Plain data that can be pickled.

    Attributes:
        kind: of the rows to read.
        file: the file to read; None if rows of the kind need several files, or none.
    """

    source: Source
    kind: DataKind
    file: str | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes to read; 0 for docstrings, whose reader has processes of its own."""
        files = self.source.locations() if self.file is None else (self.file,)
        return sum(map(size_bytes, files))

    @property
    def local_files(self) -> list[str] | None:
        """Files that a machine needs to read the part; None if only this machine can.

        Docstrings are those of its packages, and a data set of the hub needs its token and cache.
        """
        files = self.source.locations() if self.file is None else (self.file,)
        if isinstance(self.source, DocstringSource) or any(f.startswith(HUB_PREFIX) for f in files):
            return None
        if isinstance(self.source, DocumentSource):
            files += tuple(map(str, Path(self.source.tokenizer).expanduser().glob("*")))
        return [file for file in files if "://" not in file]


def split_source(source: Source) -> list[SourcePart]:
    """All parts of a source, in its order.

    Raises:
        UserError: when there is no file at one of its locations.
    """
    if isinstance(source, FileSource):
        by_kind: list[tuple[DataKind, tuple[str, ...]]] = [
            ("pairs", source.pairs),
            ("passages", source.passages),
            ("conversations", source.conversations),
        ]
        return [
            SourcePart(source, kind, file)
            for kind, locations in by_kind
            for location in locations
            for file in find_files(location)
        ]
    if isinstance(source, DocumentSource):
        files = [
            file
            for location in source.passages
            for file in find_files(location, DOCUMENT_EXTENSIONS)
        ]
        return [SourcePart(source, "passages", file) for file in files]
    if isinstance(source, DocstringSource):
        return [SourcePart(source, "pairs")]
    return [SourcePart(source, "pairs"), SourcePart(source, "passages")]


def iter_pairs(
    source_or_part: Source | SourcePart, skipped: SkippedRows | None = None
) -> Iterator[Pair]:
    """Pairs of a source, or of a part of it.

    Args:
        skipped: counts skipped rows. The source's `on_error` decides whether bad rows are skipped.

    Raises:
        UserError: at a bad row unless they are skipped, or when there is no row.
    """
    for part in _parts_of_kind(source_or_part, "pairs"):
        source, counted = part.source, _skipped_rows_for(part.source, skipped)
        if isinstance(source, DocstringSource):
            yield from docstring_pairs(
                source.packages, min_passage_characters=source.min_passage_characters
            )
        elif isinstance(source, FileSource):
            assert part.file is not None
            yield from read_pairs(
                part.file,
                layout=None if source.format == "files" else source.format,
                min_score=source.min_score,
                score_field=source.score_field,
                instruction=source.only_instruction,
                skipped=counted,
            )
        elif isinstance(source, MsMarcoSource) and source.triples is not None:
            yield from read_id_triples(
                collection=source.collection,
                queries=source.queries,
                triples=source.triples,
                skipped=counted,
            )
        elif isinstance(source, BeirSource | MsMarcoSource):
            assert source.qrels is not None
            yield from read_judged_pairs(
                collection=source.collection,
                queries=source.queries,
                qrels=source.qrels,
                skipped=counted,
            )


def iter_passages(
    source_or_part: Source | SourcePart, skipped: SkippedRows | None = None
) -> Iterator[str]:
    """Passages without a query; arguments and errors are those of `iter_pairs`."""
    for part in _parts_of_kind(source_or_part, "passages"):
        source, counted = part.source, _skipped_rows_for(part.source, skipped)
        if isinstance(source, DocumentSource):
            assert part.file is not None
            yield from read_document(
                part.file,
                count_tokens=token_counter(source.tokenizer),
                max_tokens=source.passage_tokens,
                overlap_tokens=source.overlap_tokens,
                skipped=counted,
            )
        elif isinstance(source, BeirSource | MsMarcoSource):
            yield from read_collection(source.collection, counted)
        elif part.file is not None:
            yield from read_passages(part.file, skipped=counted)


def iter_conversations(
    source_or_part: Source | SourcePart, skipped: SkippedRows | None = None
) -> Iterator[Conversation]:
    """Conversations; arguments and errors are those of `iter_pairs`."""
    for part in _parts_of_kind(source_or_part, "conversations"):
        if part.file is not None:
            assert isinstance(part.source, FileSource)
            yield from read_conversations(
                part.file,
                min_score=part.source.min_score,
                score_field=part.source.score_field,
                skipped=_skipped_rows_for(part.source, skipped),
            )


def _parts_of_kind(source_or_part: Source | SourcePart, kind: DataKind) -> list[SourcePart]:
    if isinstance(source_or_part, SourcePart):
        parts = [source_or_part]
    else:
        parts = split_source(source_or_part)
    return [part for part in parts if part.kind == kind]


def _skipped_rows_for(source: Source, skipped: SkippedRows | None) -> SkippedRows:
    """Counts into the caller's object, with the source's rule for bad rows."""
    counted = skipped or SkippedRows()
    skip = not isinstance(source, DocstringSource) and source.on_error == "skip"
    return SkippedRows(counted.counts, counted.bad_rows, skip)


def with_synthetic(section: Corpus, synthetic: Artifact | None) -> Corpus:
    """The section with the pairs that a language model wrote as one more source."""
    if synthetic is None or section.synthetic is None:
        return section
    generated = FileSource(
        format="files",
        pairs=(str(synthetic.path / "pairs.jsonl"),),
        prompts=section.synthetic.prompts,
        symmetric=section.synthetic.symmetric,
    )
    return section.model_copy(update={"sources": {**section.sources, "synthetic": generated}})
