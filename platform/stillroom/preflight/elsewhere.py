"""What measuring outside of the corpus, and training on general texts, adds to a recipe's work."""

from collections.abc import Iterator
from pathlib import Path

from stillroom.config.recipe import Recipe


def guard_texts(recipe: Recipe) -> int:
    """Texts of the guards, at most, that each model of the report encodes."""
    evaluation = recipe.evaluation
    if evaluation.guards is None:
        made = evaluation.made_guards
        return made.sets * (made.queries + made.passages)
    files = [
        file
        for name in ("corpus.jsonl", "queries.jsonl")
        for file in Path(evaluation.guards).glob(f"**/{name}")
    ]
    return sum(_lines(file) for file in files)


def costs_elsewhere(recipe: Recipe) -> Iterator[str]:
    """A sentence for each addition."""
    evaluation = recipe.evaluation
    if evaluation.measures_elsewhere:
        made = evaluation.made_guards
        what = (
            f"the sets in {evaluation.guards}"
            if evaluation.guards is not None
            else f"at most {made.sets} sets of {made.queries:,} queries and {made.passages:,} "
            f"passages of up to {made.words} words, made of this machine's own texts"
        )
        yield (
            f"The report also measures elsewhere, on {what}: every model encodes up to "
            f"{guard_texts(recipe):,} texts more. evaluation.made_guards.sets=0 turns it off."
        )
    if recipe.corpus.texts is not None:
        yield (
            f"The teacher also embeds up to {recipe.corpus.texts.general:,} general texts, once, "
            "for the student's phases on texts."
        )


def _lines(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(1 for _ in opened)
