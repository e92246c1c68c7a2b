"""The corpus's guards: evaluation sets from other fields, of which nothing is trained on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.config.corpus import Corpus, DocstringSource, MachineSource
from stillroom.config.evaluation import Evaluation
from stillroom.data.general.guards import make_guards
from stillroom.data.readers.beir import read_beir_sets
from stillroom.data.readers.docstrings import normalise_name
from stillroom.data.readers.records import EvaluationSet
from stillroom.errors import UserError

MAX_OVERLAP = 0.05  # of a guard's texts; one of which more is trained on is not from another field
log = logging.getLogger(__name__)


@dataclass
class Guards:
    """Sets by name, and how many of their texts training texts matched.

    Attributes:
        made: whether they are this machine's own texts, else the recipe's.
        units: of documents that the made ones consist of.
        apart: a source of this machine's texts of which general texts have none, so that one set is
            of a field that nothing was trained on.
        overlap: set → its matched texts, as (role, id).
        left_out: set → why it is not measured.
    """

    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    made: bool = False
    units: frozenset[str] = frozenset()
    apart: MachineSource | None = None
    overlap: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add_match(self, name: str, role: str, text_id: str) -> None:
        """Notes that a training text matched a text of a set."""
        self.overlap.setdefault(name, set()).add((role, text_id))

    def leave_out_overlapping(self) -> None:
        """Leaves out made sets that are of a field of the training texts.

        Raises:
            UserError: for such a set that the recipe names.
        """
        for name, matched in self.overlap.items():
            dataset = self.sets[name]
            texts = len(dataset.qrels) + len(dataset.passages)
            if len(matched) <= MAX_OVERLAP * texts:
                continue
            problem = f"{len(matched):,} of its {texts:,} texts are among the training texts"
            if not self.made:
                role, text_id = min(matched)
                text = (dataset.queries if role == "query" else dataset.passages)[text_id]
                raise UserError(
                    f"evaluation.guards: {name}",
                    f"is not from another field: {problem}, such as {text[:60]!r}",
                    "Name a set of another field, or put it under corpus.evaluation",
                )
            log.warning("corpus: %s is not measured: %s", name, problem)
            self.left_out[name] = problem
            del self.sets[name]

    def as_json(self) -> dict[str, Any]:
        """Set → its size, and the number of its texts that training texts matched."""
        return {
            **{
                name: {**dataset.counts(), "matched": len(self.overlap.get(name, ()))}
                for name, dataset in self.sets.items()
            },
            **{name: {"left_out": why} for name, why in self.left_out.items()},
        }


def find_guards(
    evaluation: Evaluation | None, section: Corpus, evaluation_sets: Mapping[str, EvaluationSet]
) -> Guards:
    """The recipe's guards, or ones that are made of this machine's texts.

    Raises:
        UserError: when a set is wrong, or named as one of the corpus's.
    """
    if evaluation is None:
        return Guards()
    if evaluation.guards is not None:
        sets = read_beir_sets(Path(evaluation.guards))
        for name in sets:
            if name in evaluation_sets or name == "held-out":
                raise UserError(
                    f"evaluation.guards: {name}",
                    "is also the name of one of the corpus's own sets",
                    "Rename its folder",
                )
        return Guards(sets)
    made = make_guards(
        **evaluation.made_guards.model_dump(), used_packages=_packages_of_docstrings(section)
    )
    return Guards(
        {name: guard.dataset for name, guard in made.items() if name not in evaluation_sets},
        made=True,
        units=frozenset().union(*(guard.units for guard in made.values())),
        # Of one source alone, general texts need the rest.
        apart=list(made.values())[-1].source if len(made) > 1 else None,
    )


def _packages_of_docstrings(section: Corpus) -> list[str] | None:
    """The Python packages whose docstrings the corpus has; None for all."""
    names: list[str] = []
    for source in section.sources.values():
        if isinstance(source, DocstringSource):
            if source.packages is None:
                return None
            names += map(normalise_name, source.packages)
    return names
