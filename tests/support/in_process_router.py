"""A router over a real socket without Ray: its replicas are in the same process.

Everything but the network hop is the real server's: routes, keys, limits, policies, prompts and
encoders.
"""

import contextlib
import socket
import threading

import uvicorn

from stillroom.encoders.interface import truncate_vectors
from stillroom.release.reader import Release
from stillroom.release.single_model import SingleModel
from stillroom.serving.app import served_models
from stillroom.serving.config import RequestLimits, ServeArgs
from stillroom.serving.http.api_keys import ApiKeys
from stillroom.serving.http.protocol import DeadlineProtocol
from stillroom.serving.http.server import HttpSettings
from stillroom.serving.messages import EncodeResult
from stillroom.serving.replica import tokenizer
from stillroom.serving.replica.engines import load_engine
from stillroom.serving.replica.in_process import LocalHandle
from stillroom.serving.router import Router, ServedEncoder


class UnbatchedReplica:
    """A replica without batches, which calls `before_encode` first."""

    def __init__(self, encoder, before_encode):
        self.encoder, self.before_encode = encoder, before_encode

    async def encode(self, job):
        self.before_encode(job)
        encoder = self.encoder
        tokens = tokenizer.tokenise(encoder.prompter, job.request, job.max_tokens)
        vectors = truncate_vectors(
            encoder.encode_tokens(tokens), job.dims, encoder.contract.normalise
        )
        return EncodeResult(
            vectors, sum(len(text.ids) for text in tokens), 0.5, 0.25, 0.125,
            space=encoder.contract.space, release="release/tiny-0123456789ab",
        )  # fmt: skip

    async def tokenize(self, texts, role, special, prompt_name, max_tokens):
        return tokenizer.describe_tokens(
            self.encoder.prompter, texts, role=role, special=special, prompt_name=prompt_name,
            max_tokens=max_tokens,
        )  # fmt: skip

    async def decode(self, ids, skip_special):
        return tokenizer.decode(self.encoder.prompter, ids, skip_special=skip_special)


@contextlib.contextmanager
def in_process_router(served, before_encode=lambda job: None, **settings):
    """Yields the URL of a router with these HttpSettings, its replicas calling `before_encode`.

    `served` is a release's folder, or a `SingleModel`.
    """
    if isinstance(served, SingleModel):
        release = served
        args = ServeArgs.read({"models": {release.name: {"model": release.ref}}})
    else:
        release = Release.open(str(served), "runs")
        args = ServeArgs.read({"releases": [str(served)]})
    models = served_models(args, {release.name: release})

    def served_encoder(target):
        encoder = load_engine(release, target, "auto", threads=1)
        replica = UnbatchedReplica(encoder, before_encode)
        return ServedEncoder(release, 4096, LocalHandle(replica, max_ongoing=1000))

    encoders = {release.encoder_name(t): served_encoder(t) for t in release.contracts}
    defaults = {
        "keys": ApiKeys(),
        "no_auth": False,
        "limits": RequestLimits(),
        "cors_origins": (),
        "access_log": None,
        "max_concurrent": 100,
        "max_batch_tokens": 4096,
    }
    # The undecorated class: Serve's decorators replace it with an actor class.
    router_class = Router.func_or_class.__bases__[0]
    router = router_class(
        models, encoders, None, None, HttpSettings(**defaults | settings), timeout_s=30.0
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            router.asgi_app, http=DeadlineProtocol, log_level="critical", lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
