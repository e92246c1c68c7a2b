"""The embedding service: finds the model, chooses the encoder, sends the request, returns vectors.

Independent of HTTP. Errors are ServingErrors, whose kinds `http.errors` turns into statuses.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.encoders.contract import BaseContract, Role, Similarity
from stillroom.errors import quote
from stillroom.release.reader import Release
from stillroom.serving.errors import RESTART_RETRY_S, ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest, EncodeJob, EncodeResult, EncoderLoad, Token
from stillroom.serving.routing.dispatcher import Dispatcher
from stillroom.serving.routing.policies import common_dims
from stillroom.serving.routing.rules import RequestFeatures
from stillroom.serving.routing.served_model import ServedModel
from stillroom.serving.telemetry.request_record import RequestRecord
from stillroom.serving.telemetry.tracing import send_span


@dataclass(frozen=True)
class ModelInfo:
    """Public information about a model; for several encoders, their common properties.

    Attributes:
        contracts: of the encoders that may answer, the documents' first.
        dims: vector sizes that all of them can give, largest first.
    """

    id: str
    release: Release
    policy: str
    contracts: tuple[BaseContract, ...]
    dims: tuple[int, ...]

    @property
    def space(self) -> str:
        """The vector space; a policy never mixes two."""
        return self.contracts[0].space

    @property
    def similarity(self) -> Similarity:
        """How an index compares the vectors; the same for all encoders of a space."""
        return self.contracts[0].similarity

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that every encoder accepts."""
        return min(contract.max_tokens for contract in self.contracts)


class EmbeddingService:
    """Answers embedding requests with the encoders that one router process knows.

    Args:
        models: every name that clients may request; the first answers where none is given.
        dispatcher: sends to the encoders.
        max_tokens: of all texts of one request together.
    """

    def __init__(self, models: Sequence[ServedModel], dispatcher: Dispatcher, max_tokens: int):
        self.models = {model.id: model for model in models}
        self.default_model = models[0].id
        self.dispatcher, self.max_tokens = dispatcher, max_tokens
        self.draining = False

    def find(self, name: str) -> ServedModel:
        """The model of that name. Raises ServingError (not found) where it is not served."""
        if name in self.models:
            return self.models[name]
        message = f"model {quote(name)} is not served; served are {', '.join(self.models)}"
        for release in (model.release for model in self.models.values()):
            for target, address in release.api_urls.items():
                if name == release.encoder_name(target):
                    message = f"the {target} of this release is a model at {address}: ask there"
        raise ServingError(ErrorKind.NOT_FOUND, message, "model")

    def info(self, name: str) -> ModelInfo:
        """Public information about a model. Raises ServingError (not found)."""
        model = self.find(name)
        contracts = self.dispatcher.contracts
        rule = model.policy.rule
        return ModelInfo(
            model.id,
            model.release,
            rule.name,
            tuple(contracts[encoder] for encoder in rule.encoders()),
            common_dims(rule, contracts),
        )

    def health(self) -> dict[str, Any]:
        """`ok` or `draining`, and how well students agree with their teachers where that is
        measured. A low agreement never stops traffic."""
        health: dict[str, Any] = {"status": "draining" if self.draining else "ok"}
        if samplers := self.dispatcher.samplers:
            health["shadow"] = {name: sampler.health() for name, sampler in samplers.items()}
        return health

    def loads(self) -> dict[str, EncoderLoad]:
        """How busy each encoder is."""
        return self.dispatcher.loads()

    async def drain(self) -> None:
        """Refuse new requests, and return when all accepted ones are answered."""
        self.draining = True
        await self.dispatcher.idle.wait()

    async def embed(self, request: EmbedRequest, record: RequestRecord) -> EncodeResult:
        """The vectors of a request, by the encoder that the model's policy chooses.

        Fills in `record` as soon as values are known, before anything can fail.

        Raises:
            ServingError: not found, invalid, too large, overloaded or unavailable.
        """
        if self.draining:
            message = "the server is stopping; try again later"
            raise ServingError(ErrorKind.UNAVAILABLE, message, retry_after_s=RESTART_RETRY_S)
        model = self.find(request.model)
        record.policy = model.policy.rule.name
        decision = self.dispatcher.decide(model, RequestFeatures.from_request(request))
        record.model, record.reason = decision.model, decision.reason
        started = time.perf_counter()
        with send_span(record.span) as trace:
            job = EncodeJob(request, decision.dims, self.max_tokens, trace)
            decision, result = await self.dispatcher.encode_with_fallback(
                model.policy, decision, job
            )
        record.model, record.reason = decision.model, decision.reason
        record.add_result(result, time.perf_counter() - started)
        return replace(result, model=decision.model)

    async def tokenize(
        self,
        model: str,
        texts: list[str],
        role: Role | None,
        special: bool,
        prompt_name: str | None = None,
    ) -> list[list[Token]]:
        """Every token of each text, by the tokenizer of the encoder that would answer.

        Args:
            role: whose prompt stands before the text; None: no prompt.
            special: include special tokens.
            prompt_name: of a prompt of the model, which replaces the role's.
        """
        encoder = self._encoder_for(model, role or "passage")
        tokens: list[list[Token]] = await self.dispatcher.call_replica(
            encoder, "tokenize", texts, role, special, prompt_name, self.max_tokens
        )
        return tokens

    async def decode(self, model: str, ids: list[list[int]], skip_special: bool) -> list[str]:
        """The texts of token ids, by the tokenizer of the encoder that answers for documents."""
        encoder = self._encoder_for(model, "passage")
        texts: list[str] = await self.dispatcher.call_replica(encoder, "decode", ids, skip_special)
        return texts

    def _encoder_for(self, model: str, role: Role) -> str:
        return self.dispatcher.decide(self.find(model), RequestFeatures(role)).model
