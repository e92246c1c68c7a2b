"""How well tokenizers fit texts, by script, for `check` and the report."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.data.text.words import count_words
from stillroom.encoders.tokens.fit import TokenizerFit, measure_fit
from stillroom.reports.text_statistics import script_of

MIN_SCRIPT_SHARE = 0.01  # of the texts, for figures of its own
ALL_SCRIPTS = "all"


@dataclass(frozen=True)
class FitFigures:
    """Figures of some texts.

    Attributes:
        texts: how many.
        unknown: the share of letters that the tokenizer does not know.
        tokens_per_word, tokens_per_character: special tokens are not counted.
        cut: the share of texts of which the model does not read all.
    """

    texts: int
    unknown: float
    tokens_per_word: float
    tokens_per_character: float
    cut: float

    @staticmethod
    def of(fit: TokenizerFit, texts: Sequence[str], room: int | Sequence[int]) -> "FitFigures":
        """The figures.

        Args:
            room: the most tokens of each text that the model reads.
        """
        tokens = int(fit.tokens.sum())
        return FitFigures(
            texts=len(texts),
            unknown=fit.unknown_share,
            tokens_per_word=tokens / max(1, sum(map(count_words, texts))),
            tokens_per_character=tokens / max(1, sum(map(len, texts))),
            cut=float(np.mean(fit.tokens > np.asarray(room))),
        )


def fit_by_script(
    tokenizer: Any, texts: Sequence[str], room: Sequence[int]
) -> dict[str, FitFigures]:
    """Script → figures of its texts; with several scripts, those of all texts come first.

    Args:
        room: as `FitFigures.of` takes it, of each text.
    """
    fit = measure_fit(tokenizer, texts)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows[script_of(text)].append(row)
    common = sorted(
        (script for script in rows if len(rows[script]) >= MIN_SCRIPT_SHARE * len(texts)),
        key=lambda script: -len(rows[script]),
    )
    figures = {}
    if len(rows) > 1:
        figures[ALL_SCRIPTS] = FitFigures.of(fit, texts, room)
    for script in common:
        of_script = [texts[row] for row in rows[script]]
        own_fit = measure_fit(tokenizer, of_script)
        figures[script] = FitFigures.of(own_fit, of_script, [room[row] for row in rows[script]])
    return figures


def tokenizer_table(tokenizers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row per model, collection of texts and script, the header first; [] without any.

    Args:
        tokenizers: model → `fit` (collection → script → fields of FitFigures), of report.json.
    """
    rows = [
        [
            *(model, where, script, f"{figures['texts']:,}"),
            f"{figures['unknown']:.1%}",
            f"{figures['tokens_per_word']:.2f}",
            f"{figures['tokens_per_character']:.2f}",
            f"{figures['cut']:.1%}",
        ]
        for model, entry in tokenizers.items()
        for where, scripts in entry.get("fit", {}).items()
        for script, figures in scripts.items()
    ]
    header = [
        *("model", "texts of", "script", "sampled", "unknown letters"),
        *("tokens a word", "a character", "cut"),
    ]
    return [header, *rows] if rows else []


def unknown_tokenizers(tokenizers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Sentences on the models whose tokenizer could not be looked at."""
    for model, entry in tokenizers.items():
        if "problem" in entry:
            yield f"Whether {model}'s tokenizer fits is not known: the model {entry['problem']}"
