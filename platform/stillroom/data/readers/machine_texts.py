"""Plain text of many fields that a machine has anyway, as documents of a title and a body.

- `dictionaries`: headword and definition, where any is installed (`dictionaries`);
- `terms`: their headwords in random groups, as short as the queries of a search;
- `manuals`: the summary and the prose of manual pages;
- `packages`: synopsis and description of Debian's packages and of Python's;
- `docstrings`: summary line and rest, of the installed Python packages;
- `readmes`: the READMEs and the news of /usr/share/doc.

A document belongs to a *unit*: a page, a package, a file; and a unit to a *family*, such as the
manual pages of one program. Units come in an order that is random but always the same, and evenly
over families, so that the first few are a sample of all fields and not of the largest family.
"""

import gzip
import hashlib
import importlib.metadata
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.config.corpus import MachineSource
from stillroom.data.readers.dictionaries import dictionary_files, read_dictionary
from stillroom.data.readers.docstrings import (
    OWN_PACKAGE,
    environment_fingerprint,
    installed_packages,
    read_docstrings,
    source_files,
)
from stillroom.data.readers.man_pages import read_man_page

MAN_FOLDER = Path("/usr/share/man")
DEBIAN_STATUS = Path("/var/lib/dpkg/status")
DOC_FOLDER = Path("/usr/share/doc")
MAX_FILE_BYTES = 1 << 20
MAX_TERMS = 6
README = re.compile(r"(readme|news|faq|overview|introduction)[^/]*", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """A text with a title.

    Attributes:
        unit: what it is a part of, such as a file or a package: unique in its source.
        title: may be empty.
        paragraphs: of the body.
    """

    source: str
    unit: str
    title: str
    paragraphs: tuple[str, ...]


def documents(
    source: MachineSource, *, without_packages: Collection[str] = ()
) -> Iterator[Document]:
    """The documents of a source in their random order; none where the machine has none.

    Args:
        without_packages: Python packages whose docstrings are left out.
    """
    if source == "docstrings":
        return _docstrings(without_packages)
    return _READERS[source]()


def machine_fingerprint(sources: Sequence[MachineSource]) -> str:
    """A hash of what `documents` would read: packages and their versions, names and sizes."""
    digest = hashlib.sha256(environment_fingerprint().encode())
    for source in sources:
        digest.update(source.encode())
        for file in _files(source):
            digest.update(f"{file} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _files(source: MachineSource) -> list[Path]:
    """The files of the system that a source reads; links are other names of a file."""
    if source in ("dictionaries", "terms"):
        return dictionary_files()
    if source == "manuals":  # the folders of other languages are translations
        return [
            file
            for folder in sorted(MAN_FOLDER.glob("man[1-9]*"))
            for file in sorted(folder.iterdir())
            if file.is_file() and not file.is_symlink()
        ]
    if source == "packages":
        return [DEBIAN_STATUS] if DEBIAN_STATUS.is_file() else []
    if source == "readmes":
        return [
            file
            for file in sorted(DOC_FOLDER.glob("*/*"))
            if file.is_file() and not file.is_symlink() and README.fullmatch(file.name)
        ]
    return []


def _shuffled(units: Iterable[str], family: Callable[[str], str] = str) -> list[str]:
    """In an order that depends on the names alone: the first of every family, then the second, …"""
    ordered = sorted(set(units), key=lambda unit: hashlib.blake2b(unit.encode()).digest())
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, str]] = []
    for unit in ordered:
        rounds.append((seen[family(unit)], unit))
        seen[family(unit)] += 1
    return [unit for _, unit in sorted(rounds, key=lambda item: item[0])]  # a stable sort


def _dictionaries() -> Iterator[Document]:
    for unit, headword, definition in _entries():
        yield Document("dictionaries", unit, headword, split_paragraphs(definition))


def _terms() -> Iterator[Document]:
    """Each headword once, in groups of 1 to `MAX_TERMS`; single words stand in groups alone.

    A student learns the teacher's vectors of what texts are about from far more fields than there
    are texts of, at the cost of a few tokens each.
    """
    terms = iter(dict.fromkeys(headword for _, headword, _ in _entries()))
    for first in terms:
        size = 1 + hashlib.blake2b(first.encode(), digest_size=1).digest()[0] % MAX_TERMS
        group = " ".join([first, *itertools.islice(terms, size - 1)])
        yield Document("terms", group, group, ())


def _entries() -> Iterator[tuple[str, str, str]]:
    """(unit, headword, definition) of all dictionaries, evenly over them."""
    entries: dict[str, tuple[str, str]] = {}
    for file in dictionary_files():
        for number, entry in enumerate(read_dictionary(file)):
            entries[f"{file.name}:{number}"] = entry
    for unit in _shuffled(entries, lambda unit: unit.partition(":")[0]):
        yield unit, *entries[unit]


def _manuals() -> Iterator[Document]:
    files = {str(file): file for file in _files("manuals")}
    for unit in _shuffled(files, _program):
        page = read_man_page(files[unit])
        if page is not None:
            yield Document("manuals", unit, page[0], tuple(page[1]))


def _program(page: str) -> str:
    """The first word of a page's name: git-add.1.gz and git-log.1.gz are of one program."""
    return re.split(r"[-_.:]", Path(page).name, maxsplit=1)[0]


def _packages() -> Iterator[Document]:
    found = {document.unit: document for document in (*_debian_packages(), *_python_packages())}
    for unit in _shuffled(found):
        yield found[unit]


def _debian_packages() -> Iterator[Document]:
    for file in _files("packages"):
        text = file.read_text(encoding="utf-8", errors="replace")
        for stanza in text.split("\n\n"):
            name = re.search(r"^Package: (\S+)", stanza, re.M)
            match = re.search(r"^Description: (.*)((?:\n .*)*)", stanza, re.M)
            if name and match:
                body = re.sub(r"^ \.?", "", match[2].strip("\n"), flags=re.M)
                yield Document("packages", f"deb:{name[1]}", match[1], split_paragraphs(body))


def _python_packages() -> Iterator[Document]:
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        name, summary = metadata["Name"], metadata["Summary"]
        if name and summary and name.lower() != OWN_PACKAGE:
            body = metadata.get_payload() or metadata["Description"] or ""  # type: ignore[attr-defined]
            yield Document("packages", f"python:{name}", summary, split_paragraphs(str(body)))


def _docstrings(without_packages: Collection[str]) -> Iterator[Document]:
    files = {
        f"{name}:{file}": file
        for name, distribution in installed_packages()
        if name not in without_packages
        for file in source_files(distribution)
    }
    for unit in _shuffled(files, lambda unit: unit.partition(":")[0]):
        for pair in read_docstrings(files[unit]):
            yield Document("docstrings", unit, pair.query, split_paragraphs(pair.passage))


def _readmes() -> Iterator[Document]:
    files = {str(file): file for file in _files("readmes")}
    for unit in _shuffled(files):
        yield document_of_file("readmes", unit, read_text(files[unit]))


_READERS: dict[str, Callable[[], Iterator[Document]]] = {
    "dictionaries": _dictionaries,
    "terms": _terms,
    "manuals": _manuals,
    "packages": _packages,
    "readmes": _readmes,
}


def read_text(file: Path) -> str:
    """A text file, which may be gzipped; empty where it cannot be read."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as opened:
            return opened.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError):
        return ""


def document_of_file(source: str, unit: str, text: str) -> Document:
    """A file as a document without a title."""
    return Document(source, unit, "", split_paragraphs(text))


def split_paragraphs(text: str) -> tuple[str, ...]:
    """The paragraphs of a text, each in one line."""
    return tuple(" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip())
