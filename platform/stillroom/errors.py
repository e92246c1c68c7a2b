"""Errors that a user can cause and fix, and formatting of other errors as one line."""


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
    return " ".join(str(error).split())[:max_characters]
