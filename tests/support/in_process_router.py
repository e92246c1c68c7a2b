"""A router over a real socket without Ray: its replicas are in the same process.

Everything but the hop is the server's own: routes, keys, limits, policies, prompts and encoders.
"""

import contextlib
import socket
import threading

import uvicorn

from stillroom.encoders.files.load import load
from stillroom.encoders.interface import prefix
from stillroom.release.reader import Release
from stillroom.serving.http.auth import Keys
from stillroom.serving.http.limits import Limits
from stillroom.serving.messages import Encoded
from stillroom.serving.replica import tokenizer as tokens
from stillroom.serving.router import Router
from stillroom.serving.routing.catalogue import Model
from stillroom.serving.routing.handles import LocalHandle
from stillroom.serving.routing.policies import Policy, auto_policy, parse_policy


class Near:
    """A replica without batches, which calls `hold` before it encodes."""

    def __init__(self, encoder, hold):
        self.encoder, self.hold = encoder, hold

    async def encode(self, work):
        self.hold(work)
        encoder = self.encoder
        ids = tokens.tokenise(encoder.prompter, work)
        vectors = prefix(encoder.encode_tokens(ids), work.dims, encoder.contract.normalise)
        return Encoded(
            vectors, sum(len(one.ids) for one in ids), 0.5, 0.25, 0.125,
            space=encoder.contract.space, release="release/tiny-0123456789ab",
        )  # fmt: skip

    async def pieces(self, texts, role, special):
        return tokens.pieces(self.encoder.prompter, texts, role=role, special=special)

    async def decode(self, ids, skip_special):
        return tokens.decode(self.encoder.prompter, ids, skip_special=skip_special)


@contextlib.contextmanager
def near(release_folder, hold=lambda work: None, **options):
    """Yields the URL of a router with these options, its replicas calling `hold` first."""
    release = Release.open(str(release_folder), "runs")
    rules = {"tiny": auto_policy(release.contracts["teacher"], release.contracts["student"])}
    rules |= {f"tiny/{target}": target for target in release.contracts}
    models = [
        Model(name, release, Policy(parse_policy("policy", rule, "tiny")))
        for name, rule in rules.items()
    ]
    handles = {
        f"tiny/{target}": LocalHandle(Near(load(release.encoder_folder(target)), hold), most=1000)
        for target in release.contracts
    }
    given = {
        "keys": Keys(),
        "no_auth": False,
        "limits": Limits(),
        "timeout_s": 30.0,
        "cors_origins": (),
        "access_log": None,
        "max_concurrent": 100,
    }
    plain = Router.func_or_class.__bases__[0]  # as it was before Serve made an actor's class of it
    releases, batch_tokens = dict.fromkeys(handles, release), dict.fromkeys(handles, 4096)
    app = plain(models, handles, {}, releases, batch_tokens, {}, None, **given | options).http
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
