"""The handlers of the API's routes: bytes to a request, the service's result to bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import NoReturn

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http import openai, tei
from stillroom.serving.http.auth import AuthenticatedRequest, Authenticator
from stillroom.serving.http.body import BodyReaders
from stillroom.serving.http.errors import HTTP_ERRORS
from stillroom.serving.http.limits import check_limits, check_parts
from stillroom.serving.http.openapi import openapi_document
from stillroom.serving.messages import EmbedRequest, EncodeResult
from stillroom.serving.service import EmbeddingService

VERSION = version("stillroom")


@dataclass(frozen=True)
class Handlers:
    """One method for each route of `openapi.ROUTES`; they raise ServingError.

    Attributes:
        render_metrics: the text of GET /metrics.
        max_concurrent, max_batch_tokens: shown by GET /info.
    """

    service: EmbeddingService
    authenticator: Authenticator
    limits: RequestLimits
    bodies: BodyReaders
    render_metrics: Callable[[], bytes]
    max_concurrent: int
    max_batch_tokens: int
    _openapi: dict[str, bytes] = field(default_factory=dict)  # by prefix; takes a while to make

    async def read_body(self, call: AuthenticatedRequest) -> bytes:
        """The request's body, unpacked. Raises ServingError as `BodyReaders.read` and `check_parts`
        do.
        """
        request = call.request
        body = await self.bodies.read(request.headers, request.stream())
        call.record.bytes_in = len(body)
        check_parts(self.limits, body)
        return body

    # OpenAI's routes.

    async def embeddings(self, call: AuthenticatedRequest) -> Response:
        """POST /v1/embeddings"""
        body = openai.parse(await self.read_body(call))
        result = await self._embed(call, body.to_request())
        return _json(openai.embeddings_body(result, body.encoding_format), _model_headers(result))

    async def models(self, call: AuthenticatedRequest) -> Response:
        """GET /v1/models"""
        models = [openai.model_body(self.service.info(name)) for name in self.service.models]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, call: AuthenticatedRequest) -> Response:
        """GET /v1/models/{model}"""
        info = self.service.info(call.request.path_params["model"])
        return JSONResponse(openai.model_body(info))

    # The routes of text-embeddings-inference.

    async def embed(self, call: AuthenticatedRequest) -> Response:
        """POST /embed and POST /"""
        body = tei.parse(tei.EmbedRequest, await self.read_body(call))
        result = await self._embed(call, body.to_request(self._model_name(call.request)))
        vectors = tei.embed_body(result.vectors, normalize=body.normalize is True)
        return _json(vectors, _model_headers(result))

    async def embed_all(self, call: AuthenticatedRequest) -> Response:
        """POST /embed_all, which only explains what to use instead."""
        message = "vectors of single tokens are not served; POST /embed gives those of texts"
        return await self._explain(call, tei.EmbedRequest, message)

    async def embed_sparse(self, call: AuthenticatedRequest) -> Response:
        """POST /embed_sparse, as `embed_all`."""
        message = "the model is no SPLADE model; POST /embed gives its vectors"
        return await self._explain(call, tei.EmbedRequest, message)

    async def predict(self, call: AuthenticatedRequest) -> Response:
        """POST /predict, as `embed_all`."""
        message = "the model is not a classifier model; POST /embed gives its vectors"
        return await self._explain(call, tei.PredictRequest, message)

    async def rerank(self, call: AuthenticatedRequest) -> Response:
        """POST /rerank, as `embed_all`."""
        message = "the model is not a re-ranker model; POST /similarity compares texts"
        return await self._explain(call, tei.RerankRequest, message)

    async def similarity(self, call: AuthenticatedRequest) -> Response:
        """POST /similarity"""
        body = tei.parse(tei.SimilarityRequest, await self.read_body(call))
        result = await self._embed(call, body.to_request(self._model_name(call.request)))
        return _json(tei.similarity_body(result.vectors), _model_headers(result))

    async def tokenize(self, call: AuthenticatedRequest) -> Response:
        """POST /tokenize"""
        body = tei.parse(tei.TokenizeRequest, await self.read_body(call))
        model, texts = self._model_name(call.request), body.texts()
        check_limits(self.limits, EmbedRequest(model, texts, None, "passage"))
        prompt_name = tei.named_prompt(body.prompt_name)
        tokens = await self.service.tokenize(
            model, texts, body.role(), body.add_special_tokens, prompt_name
        )
        return _json(tei.tokens_body(tokens))

    async def decode(self, call: AuthenticatedRequest) -> Response:
        """POST /decode"""
        body = tei.parse(tei.DecodeRequest, await self.read_body(call))
        model, ids = self._model_name(call.request), body.id_lists()
        check_limits(self.limits, EmbedRequest(model, [], ids, "passage"))
        return JSONResponse(await self.service.decode(model, ids, body.skip_special_tokens))

    async def info(self, call: AuthenticatedRequest) -> Response:
        """GET /info"""
        info = tei.info(
            self.service.info(self._model_name(call.request)),
            max_concurrent=self.max_concurrent,
            max_batch_tokens=self.max_batch_tokens,
            max_texts=self.limits.texts,
            version=VERSION,
        )
        return JSONResponse(info.model_dump())

    # For operators.

    async def healthz(self, call: AuthenticatedRequest) -> Response:
        """GET /healthz and GET /health"""
        unavailable = HTTP_ERRORS[ErrorKind.UNAVAILABLE].status
        status = unavailable if self.service.draining else 200
        return JSONResponse(self.service.health(), status)

    health = healthz

    async def prometheus(self, call: AuthenticatedRequest) -> Response:
        """GET /metrics"""
        return Response(self.render_metrics(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, call: AuthenticatedRequest) -> Response:
        """GET /openapi.json"""
        prefix = call.request.scope.get("root_path", "")
        if prefix not in self._openapi:
            model = self.service.info(self.service.default_model)
            document = openapi_document(
                model=model.id,
                dims=model.dims[0],
                limits=self.limits,
                keys=self.authenticator.keys.configured,
                version=VERSION,
                prefix=prefix,
            )
            self._openapi[prefix] = orjson.dumps(document)
        return _json(self._openapi[prefix])

    async def _explain(
        self, call: AuthenticatedRequest, schema: type[tei.Body], message: str
    ) -> NoReturn:
        """Raises ServingError for a request that is right, and that no embedder answers."""
        tei.parse(schema, await self.read_body(call))
        raise ServingError(ErrorKind.UNSUPPORTED_OUTPUT, message)

    async def _embed(self, call: AuthenticatedRequest, request: EmbedRequest) -> EncodeResult:
        check_limits(self.limits, request)
        if call.key:
            self.authenticator.charge(call.key, "texts", len(request))
        return await self.service.embed(request, call.record)

    def _model_name(self, request: Request) -> str:
        """The model that a TEI request names; TEI's schema has no field for it."""
        headers, query = request.headers, request.query_params
        return query.get("model") or headers.get("x-stillroom-model") or self.service.default_model


def _model_headers(result: EncodeResult) -> dict[str, str]:
    return {
        "x-stillroom-model": result.model,
        "x-stillroom-space": result.space,
        "x-stillroom-release": result.release,
    }


def _json(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, media_type="application/json", headers=headers)
