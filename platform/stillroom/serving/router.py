"""The application's ingress: builds the service and its HTTP API, and runs them in one process.

No `from __future__ import annotations` here: Ray Serve reads the types of a deployment.
"""

from dataclasses import dataclass

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from stillroom.release.reader import Release
from stillroom.serving.http.server import HttpApi, HttpSettings
from stillroom.serving.playground.routes import playground_routes
from stillroom.serving.playground.service import Playground
from stillroom.serving.replica.in_process import InProcessReplica
from stillroom.serving.routing.dispatcher import Dispatcher
from stillroom.serving.routing.served_model import ServedModel
from stillroom.serving.routing.shadow import ShadowMetrics, ShadowOptions, ShadowSampler
from stillroom.serving.service import EmbeddingService
from stillroom.serving.telemetry.metrics import RouterMetrics


@dataclass(frozen=True)
class ServedEncoder:
    """One encoder of a release, and where it runs.

    Attributes:
        batch_tokens: tokens that fill one of its forwards.
        replicas: handle of its deployment; None where it runs in the router's process.
        in_process: the replica to run in the router's process; None where it has a deployment.
        shadow: compares this student's answers with its teacher's.
    """

    release: Release
    batch_tokens: int
    replicas: DeploymentHandle | None = None
    in_process: InProcessReplica | None = None
    shadow: DeploymentHandle | None = None


@serve.deployment
@serve.ingress()
class Router:
    """Takes HTTP requests and sends them to the encoders.

    Args:
        models: the entries of GET /v1/models; the first answers where no name is given.
        encoders: NAME/teacher and NAME/student of every release.
        shadow: how often answers are compared.
        playground: the page at GET /; None: no page.
        timeout_s: a request without an answer by then fails (unavailable).
    """

    def __init__(
        self,
        models: list[ServedModel],
        encoders: dict[str, ServedEncoder],
        shadow: ShadowOptions | None,
        playground: Playground | None,
        http: HttpSettings,
        timeout_s: float,
    ):
        metrics = RouterMetrics()
        self.in_process = {
            name: encoder.in_process.create_handle()
            for name, encoder in encoders.items()
            if encoder.in_process is not None
        }
        replicas = {
            name: encoder.replicas
            for name, encoder in encoders.items()
            if encoder.replicas is not None
        }
        dispatcher = Dispatcher(
            {**replicas, **self.in_process},
            {name: encoder.release for name, encoder in encoders.items()},
            {name: encoder.batch_tokens for name, encoder in encoders.items()},
            timeout_s,
            _samplers(encoders, shadow, metrics),
        )
        self.service = EmbeddingService(models, dispatcher, http.limits.tokens)
        api = HttpApi(self.service, http, metrics)
        self.asgi_app = api.asgi_app(playground_routes(playground, api, dispatcher.encode))

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.asgi_app

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a router that raises."""
        for handle in self.in_process.values():
            handle.replica.check_health()

    async def drain(self) -> None:
        """Refuse new requests, and return when all accepted ones are answered."""
        await self.service.drain()


def _samplers(
    encoders: dict[str, ServedEncoder], options: ShadowOptions | None, metrics: RouterMetrics
) -> dict[str, ShadowSampler]:
    """Student → sampler of its answers."""
    shadow_metrics = ShadowMetrics(metrics.registry)
    return {
        name: ShadowSampler(
            name, encoder.release.encoder_name("teacher"), encoder.shadow, options, shadow_metrics
        )
        for name, encoder in encoders.items()
        if encoder.shadow is not None and options is not None
    }
