"""Errors that a user can cause and fix, and how texts and other errors are shown in messages."""

import regex

SHOWN_CHARACTERS = 60  # of a text in a message


class UserError(Exception):
    """Wrong input of the user: a recipe, a file, a model, a machine.

    The command line prints the three arguments as one line and exits with `code`: 2, or 1 in
    subclasses for failures that no other input would have prevented.

    Args:
        where: the file and line, the recipe field or the option.
        problem: the problem, without a full stop.
        fix: what to do, without a full stop.
    """

    code = 2

    def __init__(self, where: str, problem: str, fix: str):
        # Every argument goes to the base class: unpickling on a Ray driver replays them.
        super().__init__(where, problem, fix)
        self.where, self.problem, self.fix = where, problem, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.fix}."


def one_line(error: object, max_characters: int | None = None) -> str:
    """The text of an error as one line: line breaks and runs of spaces become single spaces.

    Args:
        error: an exception, or its text.
        max_characters: cuts the line; None keeps all of it.
    """
    line = " ".join(str(error).split())
    return line if max_characters is None else beginning(line, max_characters)


def beginning(text: str, max_characters: int) -> str:
    """At most that many of a text's first characters.

    What a reader sees as one character (UAX 29's grapheme clusters: a letter with its marks, a
    family of emoji) is not cut, unless it alone is longer.
    """
    if len(text) <= max_characters:
        return text
    # Whether a cluster ends before a character depends on that character and earlier ones only.
    clusters = regex.finditer(r"\X", text[: max_characters + 1])
    last = max(cluster.start() for cluster in clusters)
    return text[: last or max_characters]


def quote(text: str, max_characters: int = SHOWN_CHARACTERS) -> str:
    """A user's text in a message: in quotes, without control characters, and not at any length."""
    shown = beginning(text, max_characters)
    return repr(shown if shown == text else f"{shown}…")
