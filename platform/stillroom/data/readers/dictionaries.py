"""Dictionaries of this machine: those of dictd (GCIDE, FOLDOC, …), and WordNet's files.

dictd keeps NAME.index, lines of headword, offset and length, and NAME.dict, gzipped as .dict.dz
(dictfmt(1)). WordNet keeps data.noun and its kin, a line a meaning (wndb(5)). Both are looked for
in the system's folders and in share/ of the Python environment, where no rights are needed.
"""

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DICTD_FOLDERS = (Path(sys.prefix) / "share" / "dictd", Path("/usr/share/dictd"))
WORDNET_FOLDERS = (
    Path(sys.prefix) / "share" / "wordnet",
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

# GCIDE's entries open with \\pro*nun`ci*a"tion\\, n. [etymology]; its texts end with [a source].
_PRONUNCIATION = re.compile(r"\\[^\\\n]{1,60}\\")
_NOTE = re.compile(r"\[[^\[\]]*\]")
_LINK_MARKS = re.compile(r"[{}]")
_WORD_CLASS = re.compile(
    r"\A[\s,;]*(?:(?:n|a|v|adj|adv|prep|conj|interj|pron)\. ?(?:[ti]\.)?[\s,;&]*)+"
    r"|^[ \t]*(?:n|v|adj|adv)(?= (?:\d+ ?)?:)",  # WordNet's, where dictd has it
    re.MULTILINE,
)
_MEANING_NUMBER = re.compile(r"(?<!\S)(?:\d+[.:]|:)(?=\s)")


def dictionary_files() -> list[Path]:
    """The dictionaries that are installed: .index files of dictd, and data.* files of WordNet."""
    by_name: dict[str, Path] = {}  # a dictionary that is in two folders counts once
    for folder in DICTD_FOLDERS:
        for file in sorted(folder.glob("*.index")):
            by_name.setdefault(file.name, file)
    files = list(by_name.values())
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
        yield headword, plain_definition(_without_headword(text, headword))


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
    return text.strip()


def plain_definition(text: str) -> str:
    """A definition as prose: without pronunciation, etymology, marks of links and of word classes,
    and without the numbers of its meanings."""
    for notation in (_PRONUNCIATION, _NOTE, _NOTE, _LINK_MARKS):  # notes may hold notes
        text = notation.sub("", text)
    text = _WORD_CLASS.sub("", text)
    text = _MEANING_NUMBER.sub("", text)
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r" (?=[\n,])", "", text).strip(" \t\n,;-")


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
