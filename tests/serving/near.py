"""A router over a real socket without Ray: its replicas are in the same process.

Everything but the hop is the server's own: routes, keys, limits, policies, prompts and encoders.
"""

import asyncio
import contextlib
import json
import socket
import threading
from types import SimpleNamespace

import uvicorn

from stillroom.encoders.encode import prefix
from stillroom.encoders.store import create, load, save
from stillroom.serving import tokens
from stillroom.serving.auth import Keys
from stillroom.serving.limits import Limits
from stillroom.serving.policies import auto_policy
from stillroom.serving.release import Release
from stillroom.serving.request import Encoded
from stillroom.serving.router import Model, Router
from tiny import tiny_decoder, tiny_encoder

QUERY = {"query": "Instruct: find\nQuery: "}


def make_release(folder, *, shared_space):
    """A release as the pipeline leaves it, of tiny models."""
    models = folder.parent / f"{folder.name}-models"
    teacher = create(
        str(tiny_decoder(models / "decoder")), space="one", attention="bidirectional",
        pooling="mean", prompts=QUERY, precision="float32", max_tokens=64,
    )  # fmt: skip
    student = create(
        str(tiny_encoder(models / "encoder")), space="one" if shared_space else "two",
        pooling="mean", precision="float32", max_tokens=32,
    )  # fmt: skip
    save(teacher, folder / "teacher")
    save(student, folder / "student")
    content = {
        "name": "tiny",
        "ref": "release/tiny-0123456789ab",
        "models": {"teacher": "teacher", "student": "student"},
        "gate": {"passed": True, "failures": [], "overridden": False},
    }
    (folder / "release.json").write_text(json.dumps(content))
    return folder


class Method:
    """What a handle's method is: `remote` begins the call."""

    def __init__(self, work):
        self.work = work

    def remote(self, *args):
        async def run():
            return self.work(*args)

        return asyncio.ensure_future(run())


def near_replica(encoder, hold):
    def encode(work):
        hold(work)
        ids = tokens.tokenise(encoder.prompter, work)
        vectors = prefix(encoder.encode_tokens(ids), work.dims, encoder.contract.normalise)
        return Encoded(vectors, sum(len(one.ids) for one in ids), 0.5, 0.25, 0.125)

    def pieces(texts, role, special):
        return tokens.pieces(encoder.prompter, texts, role=role, special=special)

    def decode(ids, skip_special):
        return tokens.decode(encoder.prompter, ids, skip_special=skip_special)

    return SimpleNamespace(encode=Method(encode), pieces=Method(pieces), decode=Method(decode))


@contextlib.contextmanager
def near(release_folder, hold=lambda work: None, **options):
    """Yields the URL of a router with these options, its replicas calling `hold` first."""
    release = Release.open(str(release_folder), "runs")
    policy = auto_policy(release.contracts["teacher"], release.contracts["student"])
    models = [Model("tiny", release, policy)]
    models += [Model(f"tiny/{target}", release, target) for target in release.contracts]
    handles = {
        f"tiny/{target}": near_replica(load(release.encoder_folder(target)), hold)
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
        "max_batch_tokens": 4096,
    }
    plain = Router.func_or_class.__bases__[0]  # as it was before Serve made an actor's class of it
    app = plain(models, handles, **given | options).http
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
