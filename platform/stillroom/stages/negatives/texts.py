"""The texts of mining, opened where they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillroom.stages.corpus.artifact import CorpusData
from stillroom.storage.artifacts import Artifact


@dataclass(frozen=True)
class MiningTexts:
    """The queries, and the passages to search.

    Attributes:
        query_languages, passage_languages: of each text; only BM25 reads them.
    """

    queries: Sequence[str]
    query_languages: Sequence[str]
    passages: Sequence[str]
    passage_languages: Sequence[str]


# Opens the texts in the process that reads them. Pickled to the actors, so a corpus is best named
# by its artifact.
OpenMiningTexts = Callable[[], MiningTexts]


def corpus_texts(corpus: Artifact) -> MiningTexts:
    """The texts of a corpus that are mined."""
    data = CorpusData.open(corpus)
    return MiningTexts(
        data.queries,
        data.languages_of("query"),
        data.passages,
        data.languages_of("passage"),
    )
