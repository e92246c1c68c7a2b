"""Gathers plain text of many fields from what is at hand: a machine's own texts, and your files.

Sources take turns, a text each, until there are enough or all are read: a large source does not
crowd out a small one. Each dictionary has two, since only they speak of every field.
Which texts are gathered depends on what is installed alone, and on no evaluation set but to leave
its texts out.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.config.corpus import MACHINE_SOURCES, MachineSource
from stillroom.data.cleaning.text_keys import beginning_key, hash_texts
from stillroom.data.general.pieces import pieces
from stillroom.data.readers.dictionaries import dictionary_files
from stillroom.data.readers.files import read_passages
from stillroom.data.readers.locations import (
    DATA_EXTENSIONS,
    DOCUMENT_EXTENSIONS,
    HUB_PREFIX,
    file_format,
    find_files,
    open_stream,
)
from stillroom.data.readers.machine_texts import (
    Document,
    document_of_file,
    documents,
)
from stillroom.data.text.words import count_words
from stillroom.errors import UserError

QUERY_WORDS = 16  # of a text that is taken for a query; longer ones are passages
LENGTHS = (8, 16, 32, 64, 128)  # words; limits of what `as_json` counts
CHUNK_TEXTS = 2048  # checked against evaluation sets at a time
# (texts) → whether each is in an evaluation set, bool, (texts,)
IsTested = Callable[[Sequence[str]], np.ndarray]


@dataclass
class Gathered:
    """Texts, and counts of what was left out.

    Attributes:
        sources: of each text.
        duplicates: source → texts that repeat an earlier one, or begin as it does.
        tested: source → texts that evaluation sets have.
    """

    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    tested: Counter[str] = field(default_factory=Counter)

    def identity(self) -> str:
        """A hash of the texts: equal for two machines that have gathered the same."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Counts by source, lengths in words, and the identity of the texts."""
        counts = Counter(self.sources)
        names = list(dict.fromkeys([*counts, *self.duplicates, *self.tested]))
        return {
            "texts": len(self.texts),
            "words": self.words.total(),
            "identity": self.identity(),
            "sources": {
                name: {
                    "texts": counts[name],
                    "words": self.words[name],
                    "duplicates": self.duplicates[name],
                    "tested": self.tested[name],
                }
                for name in names
            },
            "lengths": _lengths(self.texts),
        }


def gather(
    *,
    max_texts: int | None = None,
    max_words: int | None = None,
    sources: Sequence[MachineSource] = MACHINE_SOURCES,
    files: Sequence[str] = (),
    without_units: Collection[str] = (),
    is_tested: IsTested | None = None,
) -> Gathered:
    """Gathers distinct texts, at most so many texts or words.

    Args:
        files: locations of your own texts: documents, or rows of passages; `hub:` data sets too.
        without_units: units of documents that are left out, such as those of evaluation sets.
        is_tested: finds texts of evaluation sets.

    Raises:
        UserError: when there is nothing to gather, or a file cannot be read.
    """
    streams: dict[str, Iterator[str]] = {}
    for source in sources:
        streams[source] = _texts(documents(source), without_units)
    if files:
        streams["files"] = _texts(_documents_of_files(files), without_units)
    gathered = Gathered()
    seen: set[int] = set()
    streams = {
        name: _distinct(name, stream, gathered, seen, is_tested) for name, stream in streams.items()
    }
    turns = [name for name in streams for _ in range(_turns(name))]
    while streams and not _is_enough(gathered, max_texts, max_words):
        for name in turns:
            if name not in streams:
                continue
            text = next(streams[name], None)
            if text is None:
                del streams[name]
                continue
            gathered.texts.append(text)
            gathered.sources.append(name)
            gathered.words[name] += count_words(text)
            if _is_enough(gathered, max_texts, max_words):
                break
    if not gathered.texts:
        raise UserError(
            "general texts",
            f"none was found in {', '.join([*sources, *files])}",
            "Install a dictionary (apt-get install dict-gcide dict-foldoc dict-wn), or name files "
            "of your own",
        )
    return gathered


def is_query(text: str) -> bool:
    """Whether a text is as short as a query; longer ones are passages."""
    return count_words(text) <= QUERY_WORDS


def _turns(source: str) -> int:
    """The texts that a source gives in each round; the other sources speak of software alone."""
    return 2 * max(1, len(dictionary_files())) if source in ("dictionaries", "terms") else 1


def _is_enough(gathered: Gathered, max_texts: int | None, max_words: int | None) -> bool:
    return (max_texts is not None and len(gathered.texts) >= max_texts) or (
        max_words is not None and gathered.words.total() >= max_words
    )


def _texts(found: Iterator[Document], without_units: Collection[str]) -> Iterator[str]:
    for document in found:
        if document.unit not in without_units:
            yield from pieces(document)


def _distinct(
    name: str,
    stream: Iterator[str],
    gathered: Gathered,
    seen: set[int],
    is_tested: IsTested | None,
) -> Iterator[str]:
    """The texts that neither repeat an earlier one nor are in an evaluation set."""
    for chunk in _chunks(stream):
        tested = np.zeros(len(chunk), dtype=bool) if is_tested is None else is_tested(chunk)
        hashes = hash_texts(map(beginning_key, chunk))
        for text, key, is_known in zip(chunk, hashes.tolist(), tested.tolist(), strict=True):
            if is_known:
                gathered.tested[name] += 1
            elif key in seen:
                gathered.duplicates[name] += 1
            else:
                seen.add(key)
                yield text


def _chunks(stream: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in stream:
        chunk.append(text)
        if len(chunk) == CHUNK_TEXTS:
            yield chunk
            chunk = []
    yield chunk


def _documents_of_files(locations: Sequence[str]) -> Iterator[Document]:
    """Documents of text and Markdown, and rows of data as documents of one paragraph."""
    for location in locations:
        for file in find_files(location, (*DOCUMENT_EXTENSIONS, *DATA_EXTENSIONS)):
            is_document = file_format(file).extension in DOCUMENT_EXTENSIONS
            if is_document and not file.startswith(HUB_PREFIX):
                with open_stream(file) as stream:
                    text = stream.read().decode("utf-8", "replace")
                yield document_of_file("files", file, text)
            else:
                for number, passage in enumerate(read_passages(file)):
                    yield Document("files", f"{file}:{number}", "", (passage,))


def _lengths(texts: Sequence[str]) -> dict[str, int]:
    """How many texts have up to so many words."""
    counts = np.array([count_words(text) for text in texts], dtype=np.int64)
    bins = np.searchsorted(LENGTHS, counts)
    names = [*(f"up to {limit}" for limit in LENGTHS), "longer"]
    return {name: int((bins == number).sum()) for number, name in enumerate(names)}


def write_texts(gathered: Gathered, file: Path) -> None:
    """Writes JSONL rows of `text` and `source`."""
    with file.open("w", encoding="utf-8") as out:
        for text, source in zip(gathered.texts, gathered.sources, strict=True):
            out.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
