"""`evaluation`: sets from other fields than the corpus, which show what training loses there."""

from pydantic import NonNegativeInt, PositiveInt

from stillroom.config.base import Section, SetSize


class MadeGuards(SetSize):
    """Sets that are made of this machine's own texts, without labels: titles find their texts.

    Attributes:
        sets: how many at most; 0 makes none.
        queries, passages: of each set, at most.
        words: where passages are cut.
    """

    sets: NonNegativeInt = 3
    queries: PositiveInt = 150
    passages: PositiveInt = 500
    words: PositiveInt = 80


class Evaluation(Section):
    """What the report measures *elsewhere*; the corpus has its own sets.

    Nothing of a guard is trained on: training texts that match one of its texts are dropped.

    Attributes:
        guards: a folder in BEIR layout, or one of such folders; null: `made_guards`.
        made_guards: used where `guards` names none.
    """

    guards: str | None = None
    made_guards: MadeGuards = MadeGuards()

    @property
    def measures_elsewhere(self) -> bool:
        """Whether there are any guards."""
        return self.guards is not None or self.made_guards.sets > 0
