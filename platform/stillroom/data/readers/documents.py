"""Plain text and Markdown → passages of limited tokens, cut between paragraphs."""

import re
from collections.abc import Callable, Iterable, Iterator

import regex

from stillroom.data.readers.locations import file_format
from stillroom.data.readers.records import SkippedRows
from stillroom.data.readers.rows import read_lines
from stillroom.errors import UserError

CountTokens = Callable[[str], int]  # tokens of a text, without special tokens

# A text with fewer tokens per character is cut before its tokens are counted, because counting is
# slow.
MIN_TOKENS_PER_CHARACTER = 1 / 16

CUT_SEARCH_CHARACTERS = 4096  # distance from the middle of a text in which it may be cut
PARAGRAPH_BREAK = "\n\n"
HEADING = re.compile(r"#{1,6}\s")

# Ends of sentences, of words, and of characters with what belongs to them (accents, vowel signs).
CUT_POINTS = (
    regex.compile(
        r"(?<=\p{Sentence_Terminal})\s+|(?<=[。！？｡။។][\p{Pe}\p{Pf}]*)(?![。！？｡\p{Pe}\p{Pf}])"
    ),
    regex.compile(r"\s+"),
    regex.compile(r"\X"),
)


def read_document(
    file: str,
    *,
    count_tokens: CountTokens,
    max_tokens: int,
    overlap_tokens: int = 0,
    skipped: SkippedRows | None = None,
) -> Iterator[str]:
    """Passages of a document, in its order.

    A passage is as many whole paragraphs as fit. A paragraph that is too long by itself is cut in
    half until its parts fit: after a sentence if possible, else between words, else between
    characters. A Markdown heading stays with what follows it.

    Args:
        count_tokens: counts the tokens of a text.
        max_tokens: of a passage.
        overlap_tokens: a passage repeats the last paragraphs (or parts of one) of the passage
            before it, as many as fit into this many tokens.
        skipped: counts bad lines, and decides whether they are skipped.

    Raises:
        UserError: at a bad line unless they are skipped, or when the document is empty.
    """
    on_bad_row = (skipped or SkippedRows()).on_bad_row
    has_headings = file_format(file).extension != ".txt"
    pieces = (
        piece
        for paragraph in split_paragraphs(line for _, line in read_lines(file, on_bad_row))
        for piece in halve_to_fit(paragraph, count_tokens, max_tokens)
    )
    empty = True
    for passage in pack_passages(
        pieces, count_tokens, max_tokens, overlap_tokens, has_headings=has_headings
    ):
        empty = False
        yield passage
    if empty:
        raise UserError(file, "is empty", "Give a document with text")


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs: lines between blank lines."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line.rstrip())
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def halve_to_fit(text: str, count_tokens: CountTokens, max_tokens: int) -> Iterator[str]:
    """The text, or parts of it in order, each of at most `max_tokens` tokens."""
    waiting = [text]
    while waiting:
        text = waiting.pop()
        may_fit = len(text) * MIN_TOKENS_PER_CHARACTER <= max_tokens
        if len(text) < 2 or (may_fit and count_tokens(text) <= max_tokens):
            yield text
            continue
        middle = _middle(text)
        parts = text[:middle].rstrip(), text[middle:].lstrip()
        waiting += [part for part in reversed(parts) if part]


def _middle(text: str) -> int:
    """Where to cut the text in two, near the middle: at the first kind of CUT_POINTS there is."""
    half = max(1, len(text) // 2)
    distance = min(CUT_SEARCH_CHARACTERS, half // 2)
    for cut_point in CUT_POINTS:
        ends = [match.end() for match in cut_point.finditer(text, half - distance, half + distance)]
        if ends:
            return min(ends, key=lambda end: abs(end - half))
    return half


def pack_passages(
    pieces: Iterator[str],
    count_tokens: CountTokens,
    max_tokens: int,
    overlap_tokens: int,
    *,
    has_headings: bool = False,
) -> Iterator[str]:
    """Joins pieces of at most `max_tokens` tokens into passages of at most `max_tokens` tokens.

    Args:
        overlap_tokens: see `read_document`.
        has_headings: whether Markdown headings stay with what follows them.
    """
    separator_tokens = count_tokens(f"a{PARAGRAPH_BREAK}a") - 2 * count_tokens("a")
    held: list[tuple[str, int]] = []  # pieces of the next passage and their tokens
    new = 0  # how many of the last held pieces are in no passage yet
    for piece in pieces:
        size = count_tokens(piece)
        while held and _total_tokens(held, separator_tokens) + separator_tokens + size > max_tokens:
            unpacked = held[len(held) - new :]
            if new < len(held) and all(
                has_headings and HEADING.match(text) for text, _ in unpacked
            ):
                held.pop(0)  # only the overlap leaves no room
                continue
            end = len(held)
            while has_headings and len(held) - end + 1 < new and HEADING.match(held[end - 1][0]):
                end -= 1
            # A joined text can have other tokens than its parts: count again.
            passage = PARAGRAPH_BREAK.join(text for text, _ in held[:end])
            yield from halve_to_fit(passage, count_tokens, max_tokens)
            moved = held[end:]
            held = [*_overlap(held[:end], separator_tokens, overlap_tokens), *moved]
            new = len(moved)
        held.append((piece, size))
        new += 1
    if new:
        passage = PARAGRAPH_BREAK.join(text for text, _ in held)
        yield from halve_to_fit(passage, count_tokens, max_tokens)


def _total_tokens(pieces: list[tuple[str, int]], separator_tokens: int) -> int:
    return sum(size for _, size in pieces) + separator_tokens * (len(pieces) - 1)


def _overlap(
    pieces: list[tuple[str, int]], separator_tokens: int, max_tokens: int
) -> list[tuple[str, int]]:
    """The last pieces that have at most `max_tokens` tokens together; never all of them."""
    if not max_tokens:
        return []  # checked first: some characters are no token at all
    for first in range(1, len(pieces)):
        if _total_tokens(pieces[first:], separator_tokens) <= max_tokens:
            return pieces[first:]
    return []
