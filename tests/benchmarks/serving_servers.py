"""The servers that serving.py compares, each in a process group of its own.

python tests/benchmarks/serving_servers.py stillroom --release DIR --port N [--options JSON]
python tests/benchmarks/serving_servers.py replica   --release DIR --port N
python tests/benchmarks/serving_servers.py fastapi   --release DIR --port N
"""

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving_load import MODEL, embed

from support.process_memory import with_descendants

HERE = str(Path(__file__).resolve())

START_TIMEOUT_S = 240

Command = Callable[[str, int], list[str]]  # (release, port) → how to start the server


def stillroom_server(**options) -> Command:
    def command(release: str, port: int) -> list[str]:
        return [sys.executable, HERE, "stillroom", "--release", release, "--port", str(port),
                "--options", json.dumps(options)]  # fmt: skip

    return command


def own_server(name: str) -> Command:
    def command(release: str, port: int) -> list[str]:
        return [sys.executable, HERE, name, "--release", release, "--port", str(port)]

    return command


def infinity_server(engine: str) -> Command:
    def command(release: str, port: int) -> list[str]:
        return [sys.executable, "-m", "infinity_emb.cli", "v2", "--model-id", f"{release}/student",
                "--served-model-name", MODEL, "--engine", engine, "--device", "cpu",
                "--url-prefix", "/v1", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip

    return command


SERVERS: dict[str, Command] = {
    "torch": stillroom_server(student={"engine": "torch", "in_router": True}),
    "onnx": stillroom_server(student={"engine": "onnx", "in_router": True}),
    "onnx-int8": stillroom_server(student={"engine": "onnx-int8", "in_router": True}),
    "openvino": stillroom_server(student={"engine": "openvino", "in_router": True}),
    "openvino-int8": stillroom_server(student={"engine": "openvino-int8", "in_router": True}),
    "infinity": infinity_server("torch"),
    "plain": own_server("fastapi"),
    "apart": stillroom_server(student={"engine": "torch"}),
    "routed": stillroom_server(student={"engine": "torch", "num_cpus": 1}),
    "in-router": stillroom_server(student={"engine": "torch", "num_cpus": 1, "in_router": True}),
    "bare": own_server("replica"),
    "hurried": stillroom_server(student={"engine": "torch", "in_router": True}, target_latency_s=2),
}

OTHER_SERVERS = ("infinity", "plain")

# Ways to run Ray Serve: `torch+haproxy` is torch's server with these in its environment. Without
# one, requests come through Serve's own proxy.
OPTIMIZED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
SERVE_MODES = {
    "optimized": {**OPTIMIZED, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    "direct": {**OPTIMIZED, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},  # the router itself listens
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", **OPTIMIZED},
}


@contextlib.contextmanager
def run_server(name: str, release: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a server (NAME or NAME+MODE); yields its process and port once it answers."""
    server, *modes = name.split("+")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # Ray lowers its workers' priority by 15: on a shared machine that is not a fair comparison.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    for mode in modes:
        environment |= SERVE_MODES[mode]
    if server == "infinity":
        environment |= {"PYTHONPATH": os.environ.get("INFINITY", ""), "DO_NOT_TRACK": "1"}
    log = Path(f"{release}/{name}.log")
    process = subprocess.Popen(
        SERVERS[server](release, port), env=environment, stdout=log.open("w"),
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_until_it_answers(process, port, name, log)
        yield process, port
    finally:
        _stop(process)


def _wait_until_it_answers(process: subprocess.Popen, port: int, name: str, log: Path) -> None:
    started = time.monotonic()
    while True:
        if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
            raise SystemExit(f"{name} does not start: see {log}\n{log.read_text()[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            embed(port, ["ready?"])
            return
        time.sleep(0.2)


def _stop(process: subprocess.Popen) -> None:
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(process: subprocess.Popen) -> float:
    """CPU seconds of a process and of all its descendants."""
    total = 0.0
    for member in with_descendants(psutil.Process(process.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(member.cpu_times()[:2])
    return total


# --- what runs in a server's process ---------------------------------------------------------


def start_serve(port: int) -> None:
    """Start Ray and Serve in the mode that the environment sets."""
    import ray
    from ray import serve

    if os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1":
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(port)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(port + 1)
        port = 0  # for Serve's proxy, which is not used
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=os.cpu_count())
    serve.start(http_options={"host": "127.0.0.1", "port": port})


def serve_stillroom(release: str, port: int, options: dict) -> None:
    """The release's application as `stillroom serve` runs it, with options for the student."""
    from ray import serve

    from stillroom.serving.app import build

    start_serve(port)
    student = {
        "num_cpus": os.cpu_count(),
        "max_ongoing_requests": 256,
        **options.get("student", {}),
    }
    # Behind HAProxy no caller counts as local.
    args = {"releases": [release], "no_auth": True, **options, "student": student}
    serve.run(build(args), name="stillroom", route_prefix="/")
    signal.pause()


def serve_replica(release: str, port: int) -> None:
    """The model's deployment alone, as its own HTTP ingress: no router before it."""
    from fastapi import FastAPI, Request, Response
    from ray import serve

    from stillroom.release.reader import Release
    from stillroom.serving.http.openai import embeddings_body, parse
    from stillroom.serving.messages import EncodeJob
    from stillroom.serving.replica.replica import DEFAULT_BATCH_TOKENS, Replica

    http = FastAPI()

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    @serve.ingress(http)
    class ReplicaIngress:
        def __init__(self):
            self.replica = Replica.func_or_class(
                Release.open(release, "."), "student", "torch", DEFAULT_BATCH_TOKENS["cpu"], 2.0,
                False,
            )  # fmt: skip

        @http.post("/v1/embeddings")
        async def embeddings(self, request: Request) -> Response:
            schema = parse(await request.body())
            result = await self.replica.encode(EncodeJob(schema.to_request(), 384))
            body = embeddings_body(replace(result, model=MODEL), schema.encoding_format)
            return Response(body, media_type="application/json")

    start_serve(port)
    serve.run(ReplicaIngress.bind(), name="replica", route_prefix="/")
    signal.pause()


def serve_fastapi(release: str, port: int) -> None:
    """The simplest server: sentence-transformers behind FastAPI, a thread for each request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(f"{release}/student", device="cpu")
    http = FastAPI()

    class EmbeddingRequest(BaseModel):
        model: str
        input: str | list[str]
        encoding_format: str = "float"

    @http.post("/v1/embeddings")
    def embeddings(request: EmbeddingRequest):
        texts = [request.input] if isinstance(request.input, str) else request.input
        rows = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        if request.encoding_format == "base64":
            data = [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in rows]
        else:
            data = [{"embedding": row.tolist()} for row in rows]
        return {"data": data}

    uvicorn.run(http, host="127.0.0.1", port=port, log_level="error")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server", choices=["stillroom", "replica", "fastapi"])
    parser.add_argument("--release", required=True, help="its folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="ServeArgs, as JSON")
    options = parser.parse_args()
    if options.server == "stillroom":
        serve_stillroom(options.release, options.port, options.options)
    elif options.server == "replica":
        serve_replica(options.release, options.port)
    else:
        serve_fastapi(options.release, options.port)


if __name__ == "__main__":
    main()
