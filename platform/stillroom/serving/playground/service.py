"""The playground: one page that sends the same query to teacher and student and shows both results.

The page and its files are open to all. Its requests are authenticated like the API's.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from stillroom.encoders.contract import Role, index_conflict
from stillroom.encoders.interface import truncate_vectors
from stillroom.errors import quote
from stillroom.release.reader import Release, Target
from stillroom.serving.errors import RESTART_RETRY_S, ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest, EncodeJob, EncodeResult
from stillroom.serving.playground.index import PlaygroundIndex

MAX_HITS = 50
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
T = TypeVar("T")
EncodeFunction = Callable[[str, EncodeJob], Awaitable[EncodeResult]]  # (encoder, job) → vectors


class PlaygroundRequest(BaseModel):
    """Fields of every request of the page."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    release: str


class SearchRequest(PlaygroundRequest):
    """The body of POST /playground/search."""

    corpus: str
    query: Text
    hits: Annotated[int, Field(ge=1, le=MAX_HITS)] = 10


class CompareRequest(PlaygroundRequest):
    """The body of POST /playground/compare."""

    query: Text
    passage: Text


@dataclass(frozen=True)
class Playground:
    """Answers the page's requests.

    Attributes:
        releases: by name, with the contracts of the encoders that are served.
        index: None where no release contains a corpus.
        needs_key: whether callers need a key; the page then shows a field for it.
    """

    releases: Mapping[str, Release]
    index: DeploymentHandle | None
    needs_key: bool

    async def about(self) -> bytes:
        """JSON: the releases with their encoders, and the corpora."""
        releases = [
            {
                "name": release.name,
                "models": {
                    target: {
                        "dims": contract.dims[0],
                        "space": contract.space,
                        "similarity": contract.similarity,
                    }
                    for target, contract in release.contracts.items()
                },
            }
            for release in self.releases.values()
        ]
        corpora = [] if self.index is None else await _from_index(self.index.catalogue.remote())
        return to_json({"releases": releases, "corpora": corpora})

    async def map(self, release: str, corpus: str) -> bytes:
        """JSON: the points of a corpus on the map; see `PlaygroundIndex.map`."""
        index = self._index(self._release(release), corpus)
        return await _from_index(index.map.remote(release, corpus))

    async def search(self, request: SearchRequest, encode: EncodeFunction) -> bytes:
        """JSON: each encoder's hits; for an encoder that cannot answer, its error message.

        Raises:
            ServingError: when no encoder can answer.
        """
        release = self._release(request.release)
        index = self._index(release, request.corpus)
        answers: dict[str, Any] = {}
        errors = []
        # One after the other: in parallel, the models would slow each other, and the times would be
        # wrong.
        for target in release.contracts:
            started = time.perf_counter()
            try:
                query_d = await _encode(release, target, "query", request.query, encode)
            except ServingError as error:
                answers[target] = {"error": error.message}
                errors.append(error)
                continue
            encode_ms = 1000 * (time.perf_counter() - started)
            hits = await _from_index(
                index.search.remote(request.release, request.corpus, target, query_d, request.hits)
            )
            answers[target] = {**hits, "encode_ms": encode_ms}
        if len(errors) == len(answers):
            raise errors[0]
        return to_json(answers)

    async def compare(self, request: CompareRequest, encode: EncodeFunction) -> bytes:
        """JSON: the score of a query and a passage by each encoder, as its index has it.

        In one space also `across`: the student's query with the teacher's passage.
        """
        release = self._release(request.release)
        pairs: dict[Target, tuple[np.ndarray, np.ndarray]] = {}
        scores: dict[str, float] = {}
        for target in release.contracts:
            query_d = await _encode(release, target, "query", request.query, encode)
            passage_d = await _encode(release, target, "passage", request.passage, encode)
            pairs[target] = query_d, passage_d
            scores[target] = float(query_d @ passage_d)
        if len(pairs) == 2 and not index_conflict(*release.contracts.values()):
            first, second = release.contracts.values()
            dims = max(set(first.dims) & set(second.dims))
            query_1d, passage_1d = (
                truncate_vectors(vector_d[None], dims, first.normalise)
                for vector_d in (pairs["student"][0], pairs["teacher"][1])
            )
            scores["across"] = float(query_1d[0] @ passage_1d[0])
        return to_json(scores)

    def _release(self, name: str) -> Release:
        if name not in self.releases:
            message = f"release {quote(name)} is not served"
            raise ServingError(ErrorKind.NOT_FOUND, message, "release", "not_found")
        return self.releases[name]

    def _index(self, release: Release, corpus: str) -> DeploymentHandle:
        if self.index is None or corpus not in release.corpora:
            message = f"release {release.name!r} contains no corpus {quote(corpus)}"
            raise ServingError(ErrorKind.NOT_FOUND, message, "corpus", "not_found")
        return self.index


def build_playground(releases: Mapping[str, Release], needs_key: bool) -> Playground:
    """The playground of an application, with an index where a release contains a corpus."""
    with_corpora = [release for release in releases.values() if release.corpora]
    if not with_corpora:
        return Playground(releases, None, needs_key)
    deployment = cast(Any, PlaygroundIndex).options(
        name="playground", ray_actor_options={"num_cpus": 0}
    )
    return Playground(releases, deployment.bind(with_corpora), needs_key)


async def _encode(
    release: Release, target: Target, role: Role, text: str, encode: EncodeFunction
) -> np.ndarray:
    """The text's vector [d] by one encoder, in its largest size."""
    encoder = release.encoder_name(target)
    job = EncodeJob(EmbedRequest(encoder, [text], None, role), release.contracts[target].dims[0])
    return (await encode(encoder, job)).vectors[0]


async def _from_index(response: Awaitable[T]) -> T:
    """The index's answer. Raises ServingError (unavailable) while Serve restarts the index."""
    try:
        return await response
    except (RayActorError, RayServeException) as error:
        message = "the playground's index does not answer; try again later"
        raise ServingError(ErrorKind.UNAVAILABLE, message, retry_after_s=RESTART_RETRY_S) from error
