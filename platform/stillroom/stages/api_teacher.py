"""A teacher behind an embeddings API: its contract, and how it is called."""

from pathlib import Path

from stillroom.config.scale import TeacherApi
from stillroom.config.teacher import EmbeddingsApi
from stillroom.encoders.api_encoder import ApiAccess, ApiEncoder
from stillroom.encoders.contract import CONTRACT_FILE, ApiContract, BaseContract, Prompts
from stillroom.openai_client.api_key import read_api_key
from stillroom.storage.artifacts import Store


def api_contract(api: EmbeddingsApi) -> ApiContract:
    """The contract of the teacher that a recipe's `teacher.api` names."""
    base_url = api.base_url.rstrip("/")
    return ApiContract(
        base_url=base_url,
        model=api.model,
        prompts=Prompts(**api.prompts.model_dump()),
        send_dimensions=api.send_dimensions,
        extra_body={"query": api.extra_body.query, "passage": api.extra_body.passage},
        max_tokens=api.max_tokens,
        similarity=api.similarity,
        normalise=api.similarity == "cosine",
        dims=(api.dims,),
        space=f"{base_url}/{api.model}/{api.dims}",
    )


def is_api(folder: Path) -> bool:
    """Whether an encoder's folder describes an API, and has no weights."""
    return (folder / CONTRACT_FILE).exists() and isinstance(BaseContract.read(folder), ApiContract)


def api_encoder(folder: Path, scale: TeacherApi, store: Store) -> ApiEncoder | None:
    """The API that an encoder's folder describes; None for a folder with weights.

    Its answers are cached under the root, so that each text is paid for once.

    Raises:
        UserError: when its key is not in the environment.
    """
    if not is_api(folder):
        return None
    limits = scale.model_dump(exclude={"api_key_env", "budget"})
    budget = scale.budget.model_dump(exclude={"price_out"})
    key = read_api_key(scale.api_key_env, "scale.teacher_api.api_key_env")
    return ApiEncoder(
        ApiContract.read(folder),
        ApiAccess(key=key, cache=store.local_folder / ".answers.sqlite", **limits, **budget),
    )
