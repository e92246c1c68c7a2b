"""TODO docstring: preflight/api_cost.py."""

from collections.abc import Iterator

from stillroom.config.teacher import Api
from stillroom.encoders.api_encoder import estimated
from stillroom.encoders.contract import Role
from stillroom.stages.api_teacher import contract_of
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.storage.artifacts import Artifact


def estimate(api: Api, corpus: Artifact) -> int:
    """Tokens that the vectors of a corpus and of its evaluation sets take at most, nearly, if none
    is kept from before. Asks nobody."""
    return estimated(contract_of(api), list(_texts(corpus)))


def _texts(corpus: Artifact) -> Iterator[tuple[str, Role, str | None]]:
    files = CorpusFiles.read(corpus)
    for text, prompt in zip(files.queries, files.prompts_of("query"), strict=True):
        yield text, "query", prompt
    for text, prompt in zip(files.passages, files.prompts_of("passage"), strict=True):
        yield text, "passage", prompt
    for kept in evaluation_sets(corpus).values():
        for text in kept.judged_queries():
            yield text, "query", kept.prompts.get("query")
        for text in kept.passages.values():
            yield text, "passage", kept.prompts.get("passage")
