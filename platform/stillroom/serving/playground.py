"""GET / : one page that asks teacher and student the same question and shows both answers.

The page and its files are open; what it asks for goes through the router's door as the API does.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import faiss
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.encoders.contract import cannot_share_index
from stillroom.encoders.showcase import Showcase
from stillroom.serving.errors import ApiError
from stillroom.serving.policies import RESTART_AFTER_S, Target
from stillroom.serving.release import Release
from stillroom.serving.request import Encoded, Work

if TYPE_CHECKING:
    from stillroom.serving.routes import Call, Door

MOST_HITS = 50
LABEL = 90  # characters of a passage that its point on the map is labelled with

# Nothing but the page's own files and this server's answers; no script may write markup.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE: dict[str, bytes] = {
    file.name: file.read_bytes() for file in files("stillroom.serving").joinpath("page").iterdir()
}


# --- the index ------------------------------------------------------------------------------


@serve.deployment
class Index:
    """Exact search, by FAISS, in what releases carry of their corpora.

    Args:
        releases: those that carry any.
    """

    def __init__(self, releases: list[Release]):
        self.corpora: dict[tuple[str, str], Showcase] = {}
        self.indices: dict[tuple[str, str, str], Any] = {}
        for release in releases:
            for name in release.corpora:
                shown = Showcase.read(release.corpus_folder(name))
                self.corpora[release.name, name] = shown
                for target, one in shown.encoders.items():
                    index = faiss.IndexFlatIP(one.vectors.shape[1])
                    index.add(one.vectors.astype(np.float32))
                    self.indices[release.name, name, target] = index

    def catalogue(self) -> list[dict[str, Any]]:
        """What there is to search, with queries to try."""
        return [
            {
                "release": release,
                "name": name,
                "passages": len(shown.texts),
                "total": shown.total,
                "examples": [
                    {"query": example.query, "answers": example.answers}
                    for example in shown.examples
                ],
            }
            for (release, name), shown in self.corpora.items()
        ]

    def map(self, release: str, corpus: str) -> bytes:
        """JSON: each passage's place in either encoder's plane, its cluster, and how it begins."""
        shown = self.corpora[release, corpus]
        points = {
            target: np.round(one.plane.place(one.vectors), 4).tolist()
            for target, one in shown.encoders.items()
        }
        labels = [" ".join(text[: 2 * LABEL].split())[:LABEL] for text in shown.texts]
        return to_json({"points": points, "clusters": shown.clusters.tolist(), "labels": labels})

    def search(self, release: str, corpus: str, target: Target, query_d: np.ndarray, k: int) -> Any:
        """The k best passages of a query, and the query's place in the encoder's plane."""
        shown = self.corpora[release, corpus]
        query = query_d[None].astype(np.float32)
        began = time.perf_counter()
        scores, rows = self.indices[release, corpus, target].search(query, min(k, len(shown.texts)))
        seconds = time.perf_counter() - began
        return {
            "hits": [
                {"row": row, "score": score, "text": shown.texts[row]}
                for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            ],
            "at": shown.encoders[target].plane.place(query)[0].tolist(),
            "search_ms": 1000 * seconds,
        }


# --- what the page asks for -----------------------------------------------------------------

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


# --- routes ---------------------------------------------------------------------------------


def mounted(playground: Playground | None, door: "Door", send: Send) -> list[Route]:
    """The page at GET / and what it asks for, of the page alone and no part of the API's schema.

    Args:
        playground: None = switched off.
        door: lets callers in and counts them, as it does for the API.
        send: to an encoder's replicas.
    """

    def shown() -> Playground:
        if playground is None:
            raise HTTPException(404, "the playground is switched off")
        return playground

    async def page(request: Request) -> Response:
        keys = b"required" if shown().keys else b"none"
        html = PAGE["index.html"].replace(b'data-keys=""', b'data-keys="%s"' % keys)
        return Response(html, headers=HEADERS, media_type=TYPES["html"])

    async def page_file(request: Request) -> Response:
        shown()
        name = request.path_params["name"]
        if name not in PAGE or name == "index.html":
            raise HTTPException(404, "Not Found")
        return Response(PAGE[name], headers=HEADERS, media_type=TYPES[Path(name).suffix[1:]])

    async def about(call: "Call") -> bytes:
        return await shown().about()

    async def corpus_map(call: "Call") -> bytes:
        asked = call.request.query_params
        return await shown().map(asked.get("release", ""), asked.get("corpus", ""))

    async def search(call: "Call") -> bytes:
        return await shown().search(_read(Search, await door.body(call)), send)

    async def compare(call: "Call") -> bytes:
        return await shown().compare(_read(Compare, await door.body(call)), send)

    def asked(path: str, work: Callable[["Call"], Awaitable[bytes]], method: str) -> Route:
        async def answer(call: "Call") -> Response:
            return Response(await work(call), headers=HEADERS, media_type="application/json")

        answering = door.answering(path, "openai", answer, open_to_all=False)
        return Route(path, answering, methods=[method])

    return [
        Route("/", page, methods=["GET"]),
        Route("/playground/page/{name}", page_file, methods=["GET"]),
        asked("/playground/about", about, "GET"),
        asked("/playground/map", corpus_map, "GET"),
        asked("/playground/search", search, "POST"),
        asked("/playground/compare", compare, "POST"),
    ]


def _read(schema: type[A], body: bytes) -> A:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the body"
        raise ApiError(400, f"{where}: {fault['msg']}", where, "invalid_value") from error
