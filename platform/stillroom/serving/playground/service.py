"""GET / : one page that asks teacher and student the same question and shows both answers.

The page and its files are open; what it asks for goes through the router's door as the API does.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.contract import cannot_share_index
from stillroom.release.reader import Release, Target
from stillroom.serving.errors import ApiError
from stillroom.serving.messages import RESTART_AFTER_S, Encoded, Work
from stillroom.serving.playground.index import Index

if TYPE_CHECKING:
    pass


MOST_HITS = 50

Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    release: str


class Search(Asked):
    corpus: str
    query: Text
    hits: Annotated[int, Field(ge=1, le=MOST_HITS)] = 10


class Compare(Asked):
    query: Text
    passage: Text


A = TypeVar("A", bound=Asked)

Send = Callable[[str, Work], Awaitable[Encoded]]  # a model's name and its work → vectors


@dataclass(frozen=True)
class Playground:
    """What the router knows of the playground.

    Attributes:
        releases: by name, with the contracts of what is served of each.
        index: None where no release carries a corpus.
        keys: whether callers need a key, which the page then asks for.
    """

    releases: Mapping[str, Release]
    index: DeploymentHandle | None
    keys: bool

    async def about(self) -> bytes:
        """Releases with their models, and corpora."""
        told = [
            {
                "name": release.name,
                "models": {
                    target: {"dims": contract.dims[0], "space": contract.space}
                    for target, contract in release.contracts.items()
                },
            }
            for release in self.releases.values()
        ]
        corpora = [] if self.index is None else await _asked(self.index.catalogue.remote())
        return to_json({"releases": told, "corpora": corpora})

    async def map(self, release: str, corpus: str) -> bytes:
        index = self._index(self._release(release), corpus)
        return await _asked(index.map.remote(release, corpus))

    async def search(self, asked: Search, send: Send) -> bytes:
        """Both encoders' hits. One that cannot answer says why in their place."""
        release = self._release(asked.release)
        index = self._index(release, asked.corpus)
        found: dict[str, Any] = {}
        faults = []
        # One after the other: a time measured beside the other model's would be the wrong one.
        for target in release.contracts:
            began = time.perf_counter()
            try:
                vector = await self._encode(release, target, "query", asked.query, send)
            except ApiError as fault:
                found[target] = {"error": fault.message}
                faults.append(fault)
                continue
            encode_ms = 1000 * (time.perf_counter() - began)
            hits = await _asked(
                index.search.remote(asked.release, asked.corpus, target, vector, asked.hits)
            )
            found[target] = {**hits, "encode_ms": encode_ms}
        if len(faults) == len(found):
            raise faults[0]
        return to_json(found)

    async def compare(self, asked: Compare, send: Send) -> bytes:
        """The cosine of a query and a passage by each encoder and, in one space, across both."""
        release = self._release(asked.release)
        pairs: dict[Target, tuple[np.ndarray, np.ndarray]] = {}
        found: dict[str, float] = {}
        for target in release.contracts:
            query = await self._encode(release, target, "query", asked.query, send)
            passage = await self._encode(release, target, "passage", asked.passage, send)
            pairs[target] = query, passage
            found[target] = _cosine(query, passage)
        if len(pairs) == 2 and not cannot_share_index(*release.contracts.values()):
            one, other = release.contracts.values()
            dims = max(set(one.dims) & set(other.dims))
            query, passage = pairs["student"][0], pairs["teacher"][1]
            found["across"] = _cosine(query[:dims], passage[:dims])
        return to_json(found)

    async def _encode(
        self, release: Release, target: Target, role: Any, text: str, send: Send
    ) -> np.ndarray:
        dims = release.contracts[target].dims[0]
        work = Work([text], None, role, dims)
        return (await send(release.model(target), work)).vectors[0]

    def _release(self, name: str) -> Release:
        if name not in self.releases:
            raise ApiError(404, f"release {name!r} is not served", "release", "not_found")
        return self.releases[name]

    def _index(self, release: Release, corpus: str) -> DeploymentHandle:
        if self.index is None or corpus not in release.corpora:
            message = f"release {release.name!r} carries no corpus {corpus!r}"
            raise ApiError(404, message, "corpus", "not_found")
        return self.index


async def _asked(response: Awaitable[Any]) -> Any:
    """What the index answers. Raises ApiError (503) where it is about to be started again."""
    try:
        return await response
    except (RayActorError, RayServeException) as error:
        message = "the playground's index does not answer; try again later"
        raise ApiError(503, message, code="overloaded", retry_after_s=RESTART_AFTER_S) from error


def _cosine(one_d: np.ndarray, other_d: np.ndarray) -> float:
    lengths = np.linalg.norm(one_d) * np.linalg.norm(other_d)
    return float(one_d @ other_d / max(lengths, 1e-12))


def playground(releases: Mapping[str, Release], keys: bool) -> Playground:
    """The playground of an application; its index, where there is one to serve, still to run."""
    carrying = [release for release in releases.values() if release.corpora]
    index = cast(Any, Index).options(name="playground", ray_actor_options={"num_cpus": 0})
    return Playground(releases, index.bind(carrying) if carrying else None, keys)
