"""A recipe's teacher behind an API: how it is asked, and what that will cost."""

from collections.abc import Iterator
from pathlib import Path

from stillroom.artifacts import Artifact, Store
from stillroom.config.scale import TeacherApi
from stillroom.config.teachers import Api
from stillroom.encoders.contract import FILE, Prompts, Remote, Role, Terms
from stillroom.encoders.remote import Access, RemoteEncoder, estimated
from stillroom.endpoint import key_in
from stillroom.stages.corpus import CorpusFiles, evaluation_sets


def contract_of(api: Api) -> Remote:
    base_url = api.base_url.rstrip("/")
    return Remote(
        base_url=base_url,
        model=api.model,
        prompts=Prompts(**api.prompts.model_dump()),
        asks_dims=api.asks_dims,
        extra_body={"query": api.extra_body.query, "passage": api.extra_body.passage},
        max_tokens=api.max_tokens,
        dims=(api.dims,),
        space=f"{base_url}/{api.model}/{api.dims}",
    )


def is_remote(folder: Path) -> bool:
    return (folder / FILE).exists() and isinstance(Terms.read(folder), Remote)


def remote_of(folder: Path, scale: TeacherApi, store: Store) -> RemoteEncoder | None:
    """The API that an encoder's folder stands for, with its vectors kept under the root; None of
    a folder with weights.

    Raises:
        UserError: when its key is not in the environment.
    """
    if not is_remote(folder):
        return None
    told = scale.model_dump(exclude={"key_variable", "budget"})
    budget = scale.budget.model_dump(exclude={"price_out"})
    key = key_in(scale.key_variable, "scale.teacher_api.key_variable")
    return RemoteEncoder(
        Remote.read(folder), Access(key=key, cache=store.work / ".answers.sqlite", **told, **budget)
    )


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
