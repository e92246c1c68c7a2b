"""A recipe's teacher behind an API: how it is asked, and what that will cost."""

from pathlib import Path

from stillroom.config.scale import TeacherApi
from stillroom.config.teacher import Api
from stillroom.encoders.api_encoder import Access, RemoteEncoder
from stillroom.encoders.contract import FILE, Prompts, Remote, Terms
from stillroom.openai_client.client import key_in
from stillroom.storage.artifacts import Store


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
