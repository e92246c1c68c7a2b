"""Light edits of a text, as contamination comes: each a function of the text, a random generator
and other texts of the same domain."""

import string
from collections.abc import Callable, Sequence
from random import Random

SHARE = 0.1  # of the words, and at least one


def edit(kind: str, text: str, random: Random, others: Sequence[str]) -> str:
    return EDITS[kind](text, random, others)


def _copied(text, random, others):
    return text


def _respelled(text, random, others):
    """Upper case, another spacing, no ASCII punctuation."""
    bare = text.translate(str.maketrans(string.punctuation, " " * len(string.punctuation)))
    return "  " + " \n".join(bare.upper().split()) + " !"


def _dropped(text, random, others):
    words = text.split()
    gone = _some(words, random)
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def _replaced(text, random, others):
    words, more = text.split(), random.choice(others).split()
    for i in _some(words, random):
        words[i] = random.choice(more)
    return " ".join(words)


def _swapped(text, random, others):
    """Each word chosen changes places with the next."""
    words = text.split()
    for i in _some(words[1:], random):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def _mistyped(text, random, others):
    """In each word chosen a letter is lost, doubled, exchanged or moved."""
    words = text.split()
    for i in _some(words, random):
        word = words[i]
        at = random.randrange(len(word))
        words[i] = random.choice(
            [
                word[:at] + word[at + 1 :] or word * 2,
                word[:at] + word[at] + word[at:],
                word[:at] + random.choice(string.ascii_lowercase) + word[at + 1 :],
                word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
            ]
        )
    return " ".join(words)


def _all_four(text, random, others):
    """As many edits, each of a kind by chance, and then respelled."""
    for _ in range(max(1, round(SHARE * len(text.split())))):
        one = random.choice([_dropped, _replaced, _swapped, _mistyped])
        text = one(text, Once(random.random()), others)
    return _respelled(text, random, others)


def _truncated(text, random, others):
    """A quarter of the words is gone, from either end."""
    words = text.split()
    cut = len(words) // 4
    return " ".join(words[cut:] if random.random() < 0.5 else words[: len(words) - cut])


def _embedded(text, random, others):
    """Between two other texts."""
    return f"{random.choice(others)}\n{text}\n{random.choice(others)}"


def _embedded_and_edited(text, random, others):
    return _embedded(_replaced(text, random, others), random, others)


def _some(words, random):
    count = 1 if isinstance(random, Once) else max(1, round(SHARE * len(words)))
    return set(random.sample(range(len(words)), min(len(words), count)))


class Once(Random):
    """Chooses one word."""


EDITS: dict[str, Callable[[str, Random, Sequence[str]], str]] = {
    "copied": _copied,
    "respelled": _respelled,
    "words dropped": _dropped,
    "words replaced": _replaced,
    "words swapped": _swapped,
    "typos": _mistyped,
    "all four": _all_four,
    "truncated": _truncated,
    "embedded": _embedded,
    "embedded and edited": _embedded_and_edited,
}
