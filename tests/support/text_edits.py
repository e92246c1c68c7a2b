"""Small edits of a text, as contaminated training data has them.

Each is a function of the text, a random generator and other texts of the same domain.
"""

import string
from collections.abc import Callable, Sequence
from random import Random

EDITED_SHARE = 0.1  # of the words, but at least one


def edit(kind: str, text: str, random: Random, others: Sequence[str]) -> str:
    """The text after one kind of edit, a key of EDITS."""
    return EDITS[kind](text, random, others)


def _copied(text, random, others):
    return text


def _respelled(text, random, others):
    """Upper case, another spacing, no ASCII punctuation."""
    bare = text.translate(str.maketrans(string.punctuation, " " * len(string.punctuation)))
    return "  " + " \n".join(bare.upper().split()) + " !"


def _dropped(text, random, others):
    words = text.split()
    dropped = _some_indices(words, random)
    return " ".join(word for i, word in enumerate(words) if i not in dropped)


def _replaced(text, random, others):
    words, other_words = text.split(), random.choice(others).split()
    for i in _some_indices(words, random):
        words[i] = random.choice(other_words)
    return " ".join(words)


def _swapped(text, random, others):
    """Some words change places with the next one."""
    words = text.split()
    for i in _some_indices(words[1:], random):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def _mistyped(text, random, others):
    """In some words a letter is lost, doubled, exchanged or moved."""
    words = text.split()
    for i in _some_indices(words, random):
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
    """Edits of a tenth of the words, each of a random kind; then respelled."""
    for _ in range(max(1, round(EDITED_SHARE * len(text.split())))):
        edit_words = random.choice([_dropped, _replaced, _swapped, _mistyped])
        text = edit_words(text, SingleWord(random.random()), others)
    return _respelled(text, random, others)


def _truncated(text, random, others):
    """A quarter of the words is cut off at one end."""
    words = text.split()
    cut = len(words) // 4
    return " ".join(words[cut:] if random.random() < 0.5 else words[: len(words) - cut])


def _embedded(text, random, others):
    """Between two other texts."""
    return f"{random.choice(others)}\n{text}\n{random.choice(others)}"


def _embedded_and_edited(text, random, others):
    return _embedded(_replaced(text, random, others), random, others)


def _some_indices(words, random):
    is_single = isinstance(random, SingleWord)
    count = 1 if is_single else max(1, round(EDITED_SHARE * len(words)))
    return set(random.sample(range(len(words)), min(len(words), count)))


class SingleWord(Random):
    """A generator with which edits change a single word."""


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
