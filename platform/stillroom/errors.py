"""Errors that a user can cause and fix, and how texts and other errors are shown in messages."""

import json

import regex

SHOWN_CHARACTERS = 60  # of a text in a message

# Nothing can show them: controls of a terminal, but for line feed and tab; those that change the
# order of letters; other ends of lines; halves of surrogate pairs, as in file names not in UTF-8.
CONTROL = regex.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Letters and digits that are written from right to left; and with what is between two of them.
_RTL = regex.compile(r"[\p{bc=R}\p{bc=AL}\p{bc=AN}]")
_RTL_RUN = regex.compile(rf"{_RTL.pattern}(?:[^\p{{bc=L}}\n]*{_RTL.pattern})?\p{{M}}*")
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"  # of Unicode's bidirectional algorithm, UAX 9


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


def user_error_within(error: BaseException) -> UserError | None:
    """The user's error that an error is, comes from or wraps; Ray and its trainers wrap what their
    workers raise."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's wrapper is of its cause's class, too, and its text is a traceback.
        wrapped = getattr(cause, "cause", None)
        if isinstance(cause, UserError) and wrapped is None:
            return cause
        cause = wrapped or cause.__cause__
    return None


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


def without_controls(text: str) -> str:
    """The text with U+FFFD for whatever could move the cursor or turn the order of letters."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def json_line(document: object) -> str:
    """A document as a line of JSON that is readable in any script, and controls no terminal.

    What JSON does not know is written as its `str`.
    """
    line = json.dumps(document, ensure_ascii=False, default=str)
    return CONTROL.sub(lambda control: f"\\u{ord(control[0]):04x}", line)


def isolate(text: str) -> str:
    """A user's text beside other texts of a line: letters from right to left do not turn those.

    It goes in the direction of its first letter.
    """
    if text.isascii() or not _RTL.search(text):
        return text
    inner = text.strip()
    return text.replace(inner, f"{_ISOLATE}{inner}{_END_ISOLATE}")


def isolate_words(message: str) -> str:
    """A message whose words from right to left, such as names of files, do not turn the others."""
    return (
        message if message.isascii() else _RTL_RUN.sub(rf"{_ISOLATE}\g<0>{_END_ISOLATE}", message)
    )


def quote(text: str, max_characters: int = SHOWN_CHARACTERS) -> str:
    """A user's text in a message: in quotes, without control characters, and not at any length."""
    shown = beginning(text, max_characters)
    return repr(shown if shown == text else f"{shown}…")
