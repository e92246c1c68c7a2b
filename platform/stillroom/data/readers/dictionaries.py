"""Dictionaries of this machine: those of dictd (GCIDE, FOLDOC, …), and WordNet's files.

dictd keeps NAME.index, lines of headword, offset and length, and NAME.dict, gzipped as .dict.dz
(dictfmt(1)). WordNet keeps data.noun and its kin, a line a meaning (wndb(5)).
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

DICTD_FOLDERS = (Path("/usr/share/dictd"),)
WORDNET_FOLDERS = (
    Path("/usr/share/wordnet"),
    *(
        root / "corpora" / "wordnet"
        for root in (Path.home() / "nltk_data", Path("/usr/share/nltk_data"))
    ),
)
# dictd's numbers, of base 64.
DIGITS = {c: i for i, c in enumerate(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)}  # fmt: skip


def dictionary_files() -> list[Path]:
    """The dictionaries that are installed: .index files of dictd, and data.* files of WordNet."""
    files = [file for folder in DICTD_FOLDERS for file in sorted(folder.glob("*.index"))]
    for folder in WORDNET_FOLDERS:
        wordnet = sorted(folder.glob("data.*"))
        if wordnet:
            return files + wordnet  # one copy of it
    return files


def read_dictionary(file: Path) -> Iterator[tuple[str, str]]:
    """(headword, definition) of a file of `dictionary_files`, in its order.

    A definition does not begin with its headword. Files that cannot be read end here.
    """
    return _read_dictd(file) if file.suffix == ".index" else _read_wordnet(file)


def _read_dictd(index: Path) -> Iterator[tuple[str, str]]:
    body = _dictd_body(index)
    seen: set[tuple[int, int]] = set()
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        headword, *numbers = line.split("\t")
        if (
            len(numbers) < 2
            or headword.startswith("00-database")
            or not set(numbers[0] + numbers[1]) <= set(DIGITS)
        ):
            continue
        start, length = _number(numbers[0]), _number(numbers[1])
        if (start, length) in seen:  # another spelling of the headword
            continue
        seen.add((start, length))
        text = body[start : start + length].decode("utf-8", "replace")
        yield headword, _without_headword(text, headword)


def _dictd_body(index: Path) -> bytes:
    zipped = index.with_suffix(".dict.dz")
    try:
        if zipped.exists():
            return gzip.decompress(zipped.read_bytes())  # dictzip is gzip
        return index.with_suffix(".dict").read_bytes()
    except (OSError, EOFError):
        return b""


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def _without_headword(text: str, headword: str) -> str:
    """The definition; dictd's entries begin with a line of the headword."""
    first, _, rest = text.strip().partition("\n")
    if rest.strip() and first.casefold().startswith(headword.casefold()):
        text = first[len(headword) :] + "\n" + rest
    return re.sub(r"[{}]", "", text).strip()


def _read_wordnet(file: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or len(fields) < 5 or not gloss.strip():  # the licence
            continue
        yield re.sub(r"\(\w+\)$", "", fields[4]).replace("_", " "), gloss.strip()
