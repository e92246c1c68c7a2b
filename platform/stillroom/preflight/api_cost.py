"""Estimates the tokens that would be sent to an embeddings API for a corpus."""

from collections.abc import Iterator

from stillroom.config.teacher import EmbeddingsApi
from stillroom.encoders.api_encoder import estimate_tokens
from stillroom.encoders.contract import Role
from stillroom.stages.api_teacher import api_contract
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets, read_guards
from stillroom.storage.artifacts import Artifact


def estimate_api_tokens(api: EmbeddingsApi, corpus: Artifact) -> int:
    """An estimated maximum of tokens for the vectors of a corpus and its evaluation sets, without
    the cache.

    Sends nothing.
    """
    return estimate_tokens(api_contract(api), _texts(corpus))


def _texts(corpus: Artifact) -> Iterator[tuple[str, Role, str | None]]:
    """Every text with its role and prompt."""
    data = CorpusData.open(corpus)
    for text, prompt in zip(data.queries, data.prompts_of("query"), strict=True):
        yield text, "query", prompt
    for text, prompt in zip(data.passages, data.prompts_of("passage"), strict=True):
        yield text, "passage", prompt
    roles: tuple[Role, ...] = ("query", "passage")
    for role in roles:
        for text in data.general_texts(role):
            yield text, role, None
    for judged in (*read_evaluation_sets(corpus).values(), *read_guards(corpus).values()):
        for text in judged.judged_queries():
            yield text, "query", judged.prompts.get("query")
        for text in judged.passages.values():
            yield text, "passage", judged.prompts.get("passage")
