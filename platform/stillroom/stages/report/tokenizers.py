"""How the tokenizers of teacher and student fit the corpus and the evaluation sets."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import (
    CONTRACT_FILE,
    ApiContract,
    BaseContract,
    Contract,
    EnsembleContract,
    LibraryContract,
    Role,
)
from stillroom.encoders.files.inputs import model_tokenizer
from stillroom.encoders.safe_read import path_inside
from stillroom.encoders.tokens.fit import text_room
from stillroom.errors import UserError
from stillroom.reports.tokenizer_fit import fit_by_script
from stillroom.stages.corpus.artifact import CorpusData

SAMPLE_TEXTS = 400  # queries of the corpus or of a set, and as many passages
Sample = list[tuple[Role, str]]


def sample_texts(corpus: CorpusData, sets: Mapping[str, EvaluationSet]) -> dict[str, Sample]:
    """Queries and passages of the corpus, and of each evaluation set."""
    texts: dict[str, dict[Role, Sequence[str]]] = {
        "corpus": {"query": corpus.queries, "passage": corpus.passages}
    }
    for name, part in sets.items():
        texts[name] = {"query": part.judged_queries(), "passage": list(part.passages.values())}
    return {
        where: [
            (role, by_role[row])
            for role, by_role in of_roles.items()
            for row in evenly_spaced(len(by_role), SAMPLE_TEXTS)
        ]
        for where, of_roles in texts.items()
    }


def tokenizer_fits(
    models: Mapping[str, Path], samples: Mapping[str, Sample], trusted: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Model → `fit`: sample → script → `FitFigures`; or `problem`, why it is not known.

    Args:
        models: folders of encoders. Each member of an ensemble is a model of its own.
        trusted: which of them may run code that comes with them.
    """
    return {
        name: _fit(folder, samples, role in trusted)
        for role, encoder in models.items()
        for name, folder in _members(role, encoder)
    }


def _members(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    contract = BaseContract.read(folder)
    if not isinstance(contract, EnsembleContract):
        yield name, folder
        return
    for member in contract.members:
        yield f"{name}, {member}", path_inside(folder, member, folder / CONTRACT_FILE)


def _fit(folder: Path, samples: Mapping[str, Sample], trusted: bool) -> dict[str, Any]:
    contract = BaseContract.read(folder)
    if isinstance(contract, ApiContract):
        return {"problem": "is behind an API"}
    assert isinstance(contract, Contract | LibraryContract)
    try:
        tokenizer = model_tokenizer(str(folder), trust_remote_code=trusted)
        room = {
            role: text_room(
                tokenizer,
                str(getattr(contract.prompts, role)),
                contract.max_tokens,
                copies=2 if isinstance(contract, Contract) and contract.echo else 1,
            )
            for role in ("query", "passage")
        }
        fits = {
            where: fit_by_script(
                tokenizer, [text for _, text in sample], [room[role] for role, _ in sample]
            )
            for where, sample in samples.items()
            if sample
        }
    except UserError as error:
        return {"problem": error.args[1]}
    return {
        "fit": {
            where: {script: asdict(figures) for script, figures in fit.items()}
            for where, fit in fits.items()
        }
    }
