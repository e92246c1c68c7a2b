"""A router over a real socket without Ray: its replicas are in the same process.

Everything but the network hop is the real server's: routes, keys, limits, policies, prompts and
encoders.
"""

import contextlib
import socket
import threading

import uvicorn

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.interface import truncate_vectors
from stillroom.release.reader import Release
from stillroom.serving.config import RequestLimits
from stillroom.serving.http.api_keys import ApiKeys
from stillroom.serving.http.server import HttpSettings
from stillroom.serving.messages import EncodeResult
from stillroom.serving.replica import tokenizer
from stillroom.serving.replica.in_process import LocalHandle
from stillroom.serving.router import Router, ServedEncoder
from stillroom.serving.routing.policies import Policy, auto_policy
from stillroom.serving.routing.rules import parse_policy
from stillroom.serving.routing.served_model import ServedModel


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

    async def tokenize(self, texts, role, special):
        prompter = self.encoder.prompter
        return tokenizer.describe_tokens(prompter, texts, role=role, special=special)

    async def decode(self, ids, skip_special):
        return tokenizer.decode(self.encoder.prompter, ids, skip_special=skip_special)


@contextlib.contextmanager
def in_process_router(release_folder, before_encode=lambda job: None, **settings):
    """Yields the URL of a router with these HttpSettings, its replicas calling `before_encode`."""
    release = Release.open(str(release_folder), "runs")
    rules = {"tiny": auto_policy(release.contracts["teacher"], release.contracts["student"])}
    rules |= {f"tiny/{target}": target for target in release.contracts}
    models = [
        ServedModel(name, release, Policy(parse_policy("policy", rule, "tiny")))
        for name, rule in rules.items()
    ]

    def served_encoder(target):
        encoder = load_encoder(release.encoder_folder(target))
        replica = UnbatchedReplica(encoder, before_encode)
        return ServedEncoder(release, 4096, LocalHandle(replica, max_ongoing=1000))

    encoders = {f"tiny/{target}": served_encoder(target) for target in release.contracts}
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
        config = uvicorn.Config(router.asgi_app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
