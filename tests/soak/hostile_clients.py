"""Broken and hostile clients beside honest ones, against a real server: `make soak`.

The honest see no error and wait at most twice as long at the 99th percentile, and afterwards the
server's memory is what it was. The figures are printed.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import resource
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1]))
from support.process_memory import with_descendants
from support.raw_http import EMBED, H2C, post_head
from support.serve_process import serve_process
from support.tiny_releases import make_release

SECONDS = float(os.environ.get("STILLROOM_SOAK_S", "60"))
# Callers, each with one request after the other. Alone they take a fifth of two cores: where they
# take all, every further request makes them wait, a well-meant one, too.
HONEST, PAUSE_S = 2, 0.05
PER_KIND = 20  # hostile clients of each kind


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    release = make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)
    with serve_process(release) as (url, _):
        yield url


@pytest.fixture(scope="module")
def server(url):
    """The process of the server; its proxy and its router are among its descendants."""
    (process,) = [p for p in psutil.Process().children() if "serve" in p.cmdline()]
    return process


async def send_half(reader, writer):
    writer.write(post_head("/v1/embeddings", 10_000) + b" " * 5000)
    await reader.read()  # until the server gives up


async def trickle_headers(reader, writer):
    for byte in b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: " + b"x" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.5)


async def trickle_body(reader, writer):
    writer.write(post_head("/v1/embeddings", 10_000))
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.5)


async def send_too_much(reader, writer):
    writer.write(post_head("/v1/embeddings", 10**9) + b" " * 10**6)
    await reader.read(100)


async def vanish(reader, writer):
    writer.write(post_head("/v1/embeddings", len(EMBED)) + EMBED[:10])
    await writer.drain()
    await asyncio.sleep(random.random())


async def vanish_before_the_answer(reader, writer):
    writer.write(post_head("/v1/embeddings", len(EMBED), H2C) + EMBED)
    await writer.drain()
    await asyncio.sleep(random.random() / 10)


async def read_nothing(reader, writer):
    # It lies in the server's buffers. What takes more than those is tested with its connections.
    writer.transport.pause_reading()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 3)
    await asyncio.sleep(5)


async def send_rubbish(reader, writer):
    writer.write(random.randbytes(1000) + b"\r\n\r\n")
    await reader.read(100)
    await asyncio.sleep(0.2)


async def send_long_text(reader, writer):
    body = b'{"model": "tiny/student", "input": "' + b"long text " * 100_000 + b'"}'
    writer.write(post_head("/v1/embeddings", len(body)) + body)
    await reader.read(100)
    await asyncio.sleep(1)


KINDS = (
    send_half, trickle_headers, trickle_body, send_too_much, vanish, vanish_before_the_answer,
    read_nothing, send_rubbish,
)  # fmt: skip


def misbehave(url, kinds):
    """Hostile callers of these kinds, all the while that honest ones ask."""

    async def misbehave_all():
        callers = [call_again(kind, urlsplit(url)) for kind in kinds for _ in range(PER_KIND)]
        if kinds:
            callers.append(call_again(send_long_text, urlsplit(url)))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*callers), SECONDS)

    asyncio.run(misbehave_all())


async def call_again(kind, address):
    await asyncio.sleep(5 * random.random())  # all at once would only measure that one moment
    while True:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                await asyncio.wait_for(kind(reader, writer), 40)
            finally:
                writer.transport.abort()
        await asyncio.sleep(2 * random.random())


def ask_honestly(url):
    """The latencies of all honest callers, and what they were told instead of an answer."""
    latencies, errors = [], []
    ends_at = time.perf_counter() + SECONDS

    async def ask_all():
        await asyncio.gather(*(ask(url, ends_at, latencies, errors) for _ in range(HONEST)))

    asyncio.run(ask_all())
    return latencies, errors


async def ask(url, ends_at, latencies, errors):
    async with httpx.AsyncClient(timeout=60) as http:
        while time.perf_counter() < ends_at:
            started = time.perf_counter()
            answer = await http.post(
                f"{url}/v1/embeddings", json={"model": "tiny/student", "input": "an honest text"}
            )
            latencies.append(time.perf_counter() - started)
            if answer.status_code != 200:
                errors.append(answer.text)
            health = await http.get(f"{url}/health")
            if health.status_code != 200:
                errors.append(health.text)
            await asyncio.sleep(PAUSE_S)


def memory_mib(server):
    return sum(p.memory_info().rss for p in with_descendants(server)) / 2**20


@pytest.fixture
def clients():
    """A process for the honest callers, and one for the hostile ones, that takes what the server
    and the honest leave of the processor: elsewhere it would be on machines of its own."""
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn) as honest,
        ProcessPoolExecutor(1, spawn, initializer=os.nice, initargs=(19,)) as hostile,
    ):
        yield honest, hostile


def test_hostile_clients_cost_only_themselves(url, server, clients):
    honest, hostile = clients

    def answers(kinds=()):
        misbehaving = hostile.submit(misbehave, url, kinds)
        seen = honest.submit(ask_honestly, url).result()
        misbehaving.result()
        return seen

    answers()  # warm
    alone, errors = answers()
    assert errors == []
    before = memory_mib(server)
    beside, errors = answers(KINDS)
    during = memory_mib(server)
    after_load, _ = answers()
    after = memory_mib(server)
    for name, latencies in (("alone", alone), ("beside", beside), ("afterwards", after_load)):
        p50, p99 = np.percentile(latencies, [50, 99]) * 1000
        print(f"{name}: {len(latencies)} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"memory: {before:.0f} MiB before, {during:.0f} during, {after:.0f} after")
    assert errors == []
    assert np.percentile(beside, 99) <= 2 * np.percentile(alone, 99)
    assert after <= 1.1 * before
