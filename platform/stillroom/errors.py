"""What a user can cause, said so that the user can mend it."""


class UserError(Exception):
    """A fault in what the user gave us: a recipe, a file, a model, a machine.

    Args:
        where: the file and line, the recipe field or the option at fault.
        problem: what is wrong with it, without a full stop.
        fix: what to do about it, without a full stop.

    The command line prints the three as one line and exits with `code`: 2, or 1 of a kind that no
    other input would have spared.
    """

    code = 2

    def __init__(self, where: str, problem: str, fix: str):
        # Every argument goes to the base class: unpickling on a Ray driver replays them.
        super().__init__(where, problem, fix)
        self.where, self.problem, self.fix = where, problem, fix

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.fix}."
