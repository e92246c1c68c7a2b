"""Whether the tokenizers of the models that a recipe names know the letters of its texts."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.config.corpus import DocstringSource
from stillroom.config.recipe import Recipe
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.beir import read_beir
from stillroom.encoders.files.inputs import model_tokenizer
from stillroom.encoders.model_names import resolve_artifact_name
from stillroom.encoders.tokens.fit import TokenizerFit, measure_fit, text_room
from stillroom.errors import UserError
from stillroom.preflight.findings import Finding
from stillroom.preflight.models import BaseModel, base_models
from stillroom.reports.text_statistics import script_of
from stillroom.reports.tokenizer_fit import FitFigures
from stillroom.stages.corpus import sources
from stillroom.storage.artifacts import Store

SAMPLE_ROWS = 400  # of a file or an evaluation set
READ_ROWS = 4000  # of a file: the sample is drawn from its beginning
UNSEEN = "knows the letters of the texts cannot be seen from here"
WARNED_SHARE = 0.01  # of unknown letters
OTHER_BASE = "Name a base whose tokenizer was made for these texts, such as a multilingual model's"


def check_tokenizers(recipe: Recipe, store: Store, stages: Collection[str]) -> Iterator[Finding]:
    """What each base's tokenizer makes of a sample of the texts.

    Args:
        stages: of the artifacts to make; a teacher or a student that exists is left out.

    Raises:
        UserError: when more than `max_unknown` of the letters of a source or a set are unknown.
    """
    models = [model for model in base_models(recipe) if model.field.partition(".")[0] in stages]
    samples = dict(_samples(recipe)) if models else {}
    for model in models:
        try:
            tokenizer = model_tokenizer(
                resolve_artifact_name(model.name, store), trust_remote_code=model.trusted
            )
        except UserError as error:
            if model.trained:
                raise
            # What only sentence-transformers can read, `trial` has opened.
            problem = f"cannot be looked at: {error.problem}. Whether it {UNSEEN}"
            yield Finding(f"{model.field}: its tokenizer", True, problem)
            continue
        fits = {where: measure_fit(tokenizer, texts) for where, texts in samples.items()}
        for where, texts in samples.items():
            fit = fits[where]
            if fit.unknown_share > recipe.max_unknown:
                raise UserError(
                    f"{model.field}: {model.name}",
                    f"its tokenizer does not know {fit.unknown_share:.0%} of the letters in "
                    f"{where} ({_scripts(texts)})",
                    f"{OTHER_BASE}; or allow it with max_unknown: 1",
                )
        yield from _finding(model, tokenizer, samples, fits)
    if recipe.teacher.api is not None and "teacher" in stages:
        yield Finding("teacher.api: its tokenizer", True, f"is the API's: whether it {UNSEEN}")


def _finding(
    model: BaseModel,
    tokenizer: Any,
    samples: Mapping[str, Sequence[str]],
    fits: Mapping[str, TokenizerFit],
) -> Iterator[Finding]:
    max_tokens = getattr(model.section, "max_tokens", None)
    # Beside special tokens; a prompt takes more.
    room = None if max_tokens is None else text_room(tokenizer, "", max_tokens)
    unknown, details = 0.0, []
    for where, fit in fits.items():
        if not fit.letters:
            continue
        unknown = max(unknown, fit.unknown_share)
        texts = samples[where]
        figures = FitFigures.of(fit, texts, int(fit.tokens.max()) if room is None else room)
        cut = "" if room is None else f", {figures.cut:.0%} cut"
        details.append(
            f"{where} ({_scripts(texts)}) {figures.unknown:.1%} unknown, "
            f"{figures.tokens_per_word:.2f} tokens a word and "
            f"{figures.tokens_per_character:.2f} a character{cut}"
        )
    if details:
        yield Finding(
            f"{model.field}: its tokenizer", unknown <= WARNED_SHARE, "; ".join(details), OTHER_BASE
        )


def _scripts(texts: Sequence[str]) -> str:
    return ", ".join(script for script, _ in Counter(map(script_of, texts)).most_common(3))


def _samples(recipe: Recipe) -> Iterator[tuple[str, list[str]]]:
    """Field of the recipe → some of its texts. Docstrings are left out: they are English."""
    for name, source in recipe.corpus.sources.items():
        if isinstance(source, DocstringSource):
            continue
        texts = [text for part in sources.split_source(source) for text in _of_part(part)]
        if texts:
            yield f"corpus.sources.{name}", texts
    for name, folder in recipe.corpus.evaluation.items():
        judged = read_beir(Path(folder))
        texts = [*judged.judged_queries(), *judged.passages.values()]
        rows = evenly_spaced(len(texts), SAMPLE_ROWS)
        yield f"corpus.evaluation.{name}", [texts[row] for row in rows]


def _of_part(part: sources.SourcePart) -> Iterator[str]:
    if part.kind == "pairs":
        pairs = list(islice(sources.iter_pairs(part), READ_ROWS))
        for row in evenly_spaced(len(pairs), SAMPLE_ROWS):
            yield from (pairs[row].query, pairs[row].passage)
    elif part.kind == "passages":
        passages = list(islice(sources.iter_passages(part), READ_ROWS))
        yield from (passages[row] for row in evenly_spaced(len(passages), SAMPLE_ROWS))
