"""The app's ingress: finds who is asked for, has the request dispatched, says who answered.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

import time
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from stillroom.encoders.contract import Role, Terms
from stillroom.release.reader import Release
from stillroom.serving.errors import ApiError
from stillroom.serving.http.access_log import AccessLog
from stillroom.serving.http.auth import Guard, Keys
from stillroom.serving.http.limits import Limits
from stillroom.serving.http.server import Door
from stillroom.serving.messages import RESTART_AFTER_S, Ask, Token
from stillroom.serving.playground.routes import mounted
from stillroom.serving.playground.service import Playground
from stillroom.serving.replica.in_process import Local
from stillroom.serving.routing.catalogue import Model
from stillroom.serving.routing.dispatch import Dispatcher
from stillroom.serving.routing.policies import Facts, policy_dims
from stillroom.serving.routing.shadow import Sampler, ShadowMetrics, ShadowOptions
from stillroom.serving.service import Answer
from stillroom.serving.telemetry.metrics import Metrics, Seen
from stillroom.serving.telemetry.tracing import sending


@serve.deployment
@serve.ingress()
class Router:
    """The app's ingress.

    Args:
        models: what GET /v1/models lists; the first answers where no name is given.
        handles: "NAME/teacher" or "NAME/student" → its replicas.
        local: those that this process is to run itself.
        releases: of both, the release that each is of.
        batch_tokens: of both, what fills one of its forwards.
        shadows: student → its Shadow.
        shadow: how often they are asked.
        playground: what GET / shows; None = nothing.
        keys: who may call; none configured = only this machine, unless `no_auth`.
        limits: of one request; larger ones are refused (413).
        timeout_s: a request that no replica has answered by then gets 503.
        cors_origins: whose pages may read answers in a browser.
        access_log: a file, "-" for standard output, None for nowhere.
        max_concurrent: what GET /info tells.
    """

    def __init__(
        self,
        models: list[Model],
        handles: dict[str, DeploymentHandle],
        local: dict[str, Local],
        releases: dict[str, Release],
        batch_tokens: dict[str, int],
        shadows: dict[str, DeploymentHandle],
        shadow: ShadowOptions | None,
        playground: Playground | None = None,
        *,
        keys: Keys,
        no_auth: bool,
        limits: Limits,
        timeout_s: float,
        cors_origins: tuple[str, ...],
        access_log: str | None,
        max_concurrent: int,
    ):
        self.models = {model.id: model for model in models}
        self.default = models[0].id
        self.limits = limits
        metrics = Metrics()
        counts = ShadowMetrics(metrics.registry)
        samplers = {
            name: Sampler(name, releases[name].model("teacher"), handle, shadow, counts)
            for name, handle in shadows.items()
            if shadow is not None
        }
        self.local = {name: one.handle() for name, one in local.items()}
        everyone = {**handles, **self.local}
        self.dispatcher = Dispatcher(everyone, releases, batch_tokens, timeout_s, samplers)
        self.draining = False
        door = Door(
            self,
            Guard(keys),
            metrics,
            AccessLog(access_log),
            no_auth=no_auth,
            limits=limits,
            max_concurrent=max_concurrent,
            max_batch_tokens=min(batch_tokens.values()),
        )
        self.http = door.app(cors_origins, mounted(playground, door, self.dispatcher.send))

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.http

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a router that raises."""
        for handle in self.local.values():
            handle.replica.check_health()

    def find(self, name: str) -> Model:
        """Raises ApiError (404) for a name that is not served."""
        if name in self.models:
            return self.models[name]
        message = f"model {name!r} is not served; served are {', '.join(self.models)}"
        for release in (one.release for one in self.models.values()):
            for target, address in release.elsewhere.items():
                if name == release.model(target):
                    message = f"the {target} of this release is a model at {address}: ask there"
        raise ApiError(404, message, "model", "model_not_found")

    def behind(self, model: Model) -> list[Terms]:
        """The contracts of the encoders that may answer to a name, the documents' first."""
        return [self.dispatcher.contracts[name] for name in model.policy.rule.encoders()]

    def describe(self, model: Model) -> dict[str, Any]:
        """A model as GET /v1/models shows it; of several encoders, what holds for all."""
        rule, behind = model.policy.rule, self.behind(model)
        return {
            "id": model.id,
            "object": "model",
            "owned_by": "stillroom",
            "created": model.release.created,
            "release": model.release.ref,
            "policy": rule.name,
            "space": behind[0].space,
            "dims": policy_dims(rule, self.dispatcher.contracts),
            "max_tokens": min(contract.max_tokens for contract in behind),
        }

    def health(self) -> dict[str, Any]:
        """What GET /healthz says: how faithful the students are changes it, never the traffic."""
        told: dict[str, Any] = {"status": "draining" if self.draining else "ok"}
        if samplers := self.dispatcher.samplers:
            told["shadow"] = {name: sampler.health() for name, sampler in samplers.items()}
        return told

    async def drain(self) -> None:
        """Take no new request, and return when the last one taken has its answer."""
        self.draining = True
        await self.dispatcher.resting.wait()

    async def embed(self, asked: Ask, seen: Seen) -> Answer:
        """Raises ApiError, as everything that it asks."""
        if self.draining:
            message = "the server is stopping; try again later"
            raise ApiError(503, message, code="overloaded", retry_after_s=RESTART_AFTER_S)
        model = self.find(asked.model)
        seen.policy = model.policy.rule.name
        facts = Facts.of(asked.texts, asked.token_ids, asked.role, asked.dimensions)
        decision = self.dispatcher.decide(model, facts)
        seen.model, seen.why = decision.model, decision.why
        started = time.perf_counter()
        with sending(seen.span) as trace:
            work = asked.work(decision.dims, self.limits.tokens, trace)
            decision, encoded = await self.dispatcher.answer(model.policy, decision, work)
        seen.model, seen.why = decision.model, decision.why
        seen.encoded(encoded, time.perf_counter() - started)
        return Answer(encoded, decision.model)

    async def pieces(
        self, name: str, texts: list[str], role: Role | None, special: bool
    ) -> list[list[Token]]:
        """Texts as the tokens of the model that answers in a role."""
        found: list[list[Token]] = await self.dispatcher.ask(
            self._tokenizer(name, role), "pieces", texts, role, special
        )
        return found

    async def decode(self, name: str, ids: list[list[int]], skip_special: bool) -> list[str]:
        """Texts of the token ids of the model that answers for documents."""
        found: list[str] = await self.dispatcher.ask(
            self._tokenizer(name, None), "decode", ids, skip_special
        )
        return found

    def _tokenizer(self, name: str, role: Role | None) -> str:
        """The encoder that would answer."""
        return self.dispatcher.decide(self.find(name), Facts(role or "passage")).model
