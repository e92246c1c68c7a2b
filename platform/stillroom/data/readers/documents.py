"""Plain text and Markdown → passages of a few tokens, cut where paragraphs end."""

import re
from collections.abc import Callable, Iterable, Iterator

from stillroom.data.readers.locations import form_of
from stillroom.data.readers.records import LeftOut
from stillroom.data.readers.rows import read_lines
from stillroom.errors import UserError

Count = Callable[[str], int]  # tokens of a text, without special ones

FEWEST = 1 / 16  # tokens a letter; a longer text is cut before anybody counts its tokens

NEAR = 4096  # letters from the middle of a text, in which a good place to cut it is looked for

JOIN = "\n\n"

HEADING = re.compile(r"#{1,6}\s")

ENDS = (re.compile(r"(?<=[.!?])\s+|(?<=[。！？])"), re.compile(r"\s+"))  # of sentences, of words


def read_document(
    file: str, *, count: Count, most: int, overlap: int = 0, left_out: LeftOut | None = None
) -> Iterator[str]:
    """Passages of at most `most` tokens, in the document's order.

    A passage is as many whole paragraphs as go into it. One that is too long by itself is halved,
    where a sentence ends if it can be, else between words, else between letters, until its parts
    go in. A Markdown heading stays with what follows it.

    Args:
        count: tokens of a text.
        most: tokens of a passage.
        overlap: tokens; a passage begins with as many of the one before's last paragraphs, or
            parts of one, as go into them.
        left_out: counts lines that are no text; whether they are left out, its `skip` says.

    Raises:
        UserError: at a line that is no text, or when the document is empty.
    """
    refuse = (left_out or LeftOut()).refuse
    headings = form_of(file).kind != ".txt"
    pieces = (
        piece
        for paragraph in paragraphs(line for _, line in read_lines(file, refuse))
        for piece in halved(paragraph, count, most)
    )
    empty = True
    for passage in packed(pieces, count, most, overlap, headings=headings):
        empty = False
        yield passage
    if empty:
        raise UserError(file, "is empty", "Give a document with text")


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """What stands between empty lines."""
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line.rstrip())
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def halved(text: str, count: Count, most: int) -> Iterator[str]:
    """The text, or parts of it that have at most `most` tokens."""
    waiting = [text]
    while waiting:
        text = waiting.pop()
        if len(text) < 2 or (len(text) * FEWEST <= most and count(text) <= most):
            yield text
            continue
        middle = _middle(text)
        parts = text[:middle].rstrip(), text[middle:].lstrip()
        waiting += [part for part in reversed(parts) if part]


def _middle(text: str) -> int:
    """Where the text is best cut in two: the end of a sentence, or a word, that is near half."""
    half = max(1, len(text) // 2)
    near = min(NEAR, half // 2)
    for end in ENDS:
        found = [match.end() for match in end.finditer(text, half - near, half + near)]
        if found:
            return min(found, key=lambda at: abs(at - half))
    return half


def packed(
    pieces: Iterator[str], count: Count, most: int, overlap: int, *, headings: bool = False
) -> Iterator[str]:
    """Pieces of at most `most` tokens, joined to passages of at most as many."""
    between = count(f"a{JOIN}a") - 2 * count("a")
    held: list[tuple[str, int]] = []  # pieces and their tokens
    new = 0  # of those held, the last, that no passage has yet
    for piece in pieces:
        size = count(piece)
        while held and _tokens(held, between) + between + size > most:
            begun = held[len(held) - new :]
            if new < len(held) and all(headings and HEADING.match(text) for text, _ in begun):
                held.pop(0)  # it is only the overlap that leaves no room
                continue
            last = len(held)
            while headings and len(held) - last + 1 < new and HEADING.match(held[last - 1][0]):
                last -= 1
            # Tokens of a whole are not quite the sum of its parts', so they are counted again.
            yield from halved(JOIN.join(text for text, _ in held[:last]), count, most)
            moved = held[last:]
            held = [*_tail(held[:last], between, overlap), *moved]
            new = len(moved)
        held.append((piece, size))
        new += 1
    if new:
        yield from halved(JOIN.join(text for text, _ in held), count, most)


def _tokens(pieces: list[tuple[str, int]], between: int) -> int:
    return sum(size for _, size in pieces) + between * (len(pieces) - 1)


def _tail(pieces: list[tuple[str, int]], between: int, overlap: int) -> list[tuple[str, int]]:
    """The last pieces, as many as have together at most `overlap` tokens; never all of them."""
    for first in range(1, len(pieces) if overlap else 1):  # some letters are no token at all
        if _tokens(pieces[first:], between) <= overlap:
            return pieces[first:]
    return []
