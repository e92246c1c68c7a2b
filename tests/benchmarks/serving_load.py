"""The load of serving.py: texts, requests over real sockets, and the latencies of their answers.

    python tests/benchmarks/serving_load.py closed --port N --texts N --concurrency N --seconds N
    python tests/benchmarks/serving_load.py open   --port N --texts N --rate N --seconds N

`closed` sends the next request of each client when its last one is answered. `open` sends at a
steady rate, whether earlier requests are answered or not. Either prints one JSON object. It runs in
a process of its own, so that it can be told apart from the server.
"""

import argparse
import asyncio
import base64
import contextlib
import importlib.metadata
import json
import random
import time
import urllib.request

import numpy as np

MODEL = "minilm"


def benchmark_texts() -> list[str]:
    """Some 1,000 texts of 4 to 60 words, 10 on average, in a fixed order: installed packages'
    descriptions."""
    texts: dict[str, None] = {}
    for name in ("numpy", "torch", "transformers", "ray", "peft", "pandas", "datasets", "scipy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            description = str(importlib.metadata.metadata(name).get_payload())
            words = [word for word in description.split() if word.isascii()]
            lengths = random.Random(len(words))
            while words:
                length = min(60, int(lengths.expovariate(1 / 6)) + 4)
                texts[" ".join(words[:length])] = None
                words = words[length:]
    shuffled = list(texts)
    random.Random(0).shuffle(shuffled)
    return shuffled


def request_body(texts: list[str]) -> bytes:
    request = {"model": MODEL, "input": texts, "encoding_format": "base64"}
    return json.dumps(request).encode()


def request_bodies(texts_per_request: int) -> list[bytes]:
    """512 requests in a fixed random order."""
    texts = benchmark_texts()
    bodies = [
        request_body([texts[(start + n) % len(texts)] for n in range(texts_per_request)])
        for start in range(512)
    ]
    random.Random(1).shuffle(bodies)
    return bodies


def embed(port: int, texts: list[str]) -> np.ndarray:
    """The server's vectors of texts."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        request_body(texts),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        data = json.load(response)["data"]
    return np.array([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in data])


async def post(reader, writer, body: bytes) -> int:
    """Post a request and return the response's status; its body is read and dropped, unparsed, so
    that two cores can be left to the server."""
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    headers = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in headers.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return int(headers.split(b" ", 2)[1])


def percentile_ms(latencies_s: list[float], percent: float) -> float:
    return 1000 * float(np.percentile(latencies_s, percent)) if latencies_s else float("nan")


async def closed_load(port: int, texts: int, concurrency: int, seconds: float) -> dict:
    """Throughput and latency of `concurrency` clients that wait for each answer."""
    bodies = request_bodies(texts)
    latencies_s: list[float] = []
    errors = 0
    stop = time.perf_counter() + seconds

    async def run_client(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        turn = number
        while (started := time.perf_counter()) < stop:
            status = await post(reader, writer, bodies[turn % len(bodies)])
            turn += concurrency
            if status == 200:
                latencies_s.append(time.perf_counter() - started)
            else:
                errors += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*map(run_client, range(concurrency)))
    elapsed_s = time.perf_counter() - started
    return {
        "requests/s": len(latencies_s) / elapsed_s,
        "texts/s": len(latencies_s) * texts / elapsed_s,
        "p50_ms": percentile_ms(latencies_s, 50),
        "p99_ms": percentile_ms(latencies_s, 99),
        "errors": errors,
        "texts": len(latencies_s) * texts,
        "load_cpu_s": time.process_time(),
    }


async def open_load(port: int, texts: int, rate: float, seconds: float) -> dict:
    """Latency of accepted and of refused requests at a steady rate of requests a second."""
    bodies = request_bodies(texts)
    accepted_s: list[float] = []
    refused_s: list[float] = []
    errors = 0
    free_connections: list[tuple] = []

    async def send(body: bytes) -> None:
        nonlocal errors
        if free_connections:
            connection = free_connections.pop()
        else:
            connection = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        started = time.perf_counter()
        status = await post(*connection, body)
        latency_s = time.perf_counter() - started
        if status in (200, 429):
            (accepted_s if status == 200 else refused_s).append(latency_s)
        else:
            errors += 1
        free_connections.append(connection)

    requests, started = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        requests.append(asyncio.create_task(send(bodies[number % len(bodies)])))
    await asyncio.gather(*requests)
    elapsed_s = time.perf_counter() - started
    return {
        "sent/s": len(requests) / elapsed_s,
        "accepted/s": len(accepted_s) / elapsed_s,
        "refused": len(refused_s) / len(requests),
        "p50_ms": percentile_ms(accepted_s, 50),
        "p99_ms": percentile_ms(accepted_s, 99),
        "refused_p50_ms": percentile_ms(refused_s, 50),
        "errors": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("load", choices=["closed", "open"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--texts", type=int, required=True, help="in a request")
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    if options.load == "closed":
        load = closed_load(options.port, options.texts, options.concurrency, options.seconds)
    else:
        load = open_load(options.port, options.texts, options.rate, options.seconds)
    print(json.dumps(asyncio.run(load)))


if __name__ == "__main__":
    main()
