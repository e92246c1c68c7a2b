"""What broken, slow and hostile clients do to a server: they cost only themselves."""

import contextlib
import resource
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from stillroom.serving.config import RequestLimits
from stillroom.serving.http import protocol
from stillroom.serving.http.body import MAX_READERS
from support.in_process_router import in_process_router
from support.raw_http import EMBED, H2C, connect, half_body, post_head, read_status
from support.tiny_releases import make_release

BODY = {"model": "tiny/student", "input": "a text"}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


@pytest.fixture(scope="module")
def url(release):
    with in_process_router(release, limits=RequestLimits(body_bytes=20_000)) as url:
        yield url


@pytest.mark.parametrize("pieces", [1, 2, 10])
def test_an_offer_to_speak_http_2_is_ignored_and_the_request_answered(url, pieces):
    with connect(url) as client:
        for _ in range(2):  # the connection stays usable
            sent = post_head("/v1/embeddings", len(EMBED), H2C) + EMBED
            for start in range(0, len(sent), len(sent) // pieces):
                client.sendall(sent[start : start + len(sent) // pieces])
            answer = b""
            while b"}}" not in answer:
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


def test_an_offer_to_speak_websocket_is_ignored_and_the_request_answered(url):
    offer = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    assert httpx.get(f"{url}/health", headers=offer).json() == {"status": "ok"}
    assert httpx.post(f"{url}/v1/embeddings", json=BODY, headers=offer).status_code == 200


def test_half_sent_bodies_hinder_nobody_and_end_with_408(release):
    clients = MAX_READERS + 164
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * clients)), hard))
    with (
        in_process_router(release, limits=RequestLimits(body_seconds=2)) as url,
        contextlib.ExitStack() as stack,
    ):
        halves = [stack.enter_context(half_body(url)) for _ in range(clients)]
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.post(f"{url}/v1/embeddings", json=BODY).status_code == 200
        # The first had to give up its place, the last one ran out of time.
        assert [read_status(client) for client in (halves[0], halves[-1])] == [408, 408]


def test_the_answer_408_has_the_form_of_the_route(release):
    with in_process_router(release, limits=RequestLimits(body_seconds=0.1)) as url:
        for path, kind in (("/v1/embeddings", b'"request_timeout"'), ("/embed", b'"Validation"')):
            with half_body(url, path) as client:
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 408") and kind in answer
            assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: "])
def test_a_client_that_does_not_finish_its_headers_is_disconnected(url, monkeypatch, sent):
    monkeypatch.setitem(protocol.DEADLINES, "head", 0.1)
    with connect(url) as client:
        client.sendall(sent)
        assert read_status(client) is None


def test_headers_that_never_end_are_refused(url):
    with connect(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: " + b"x" * 100_000)
        assert read_status(client) == 400


def test_after_an_early_answer_the_rest_of_a_body_is_not_awaited_for_ever(url, monkeypatch):
    monkeypatch.setitem(protocol.DEADLINES, "unread body", 0.1)
    with connect(url) as client:
        client.sendall(post_head("/v1/embeddings", 10**6) + b" " * 1000)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_while_it_sends_is_counted_as_499_without_a_traceback(release, caplog):
    with in_process_router(release) as url:
        half_body(url).close()
        while 'status="499"} 1.0' not in (metrics := httpx.get(f"{url}/metrics").text):
            time.sleep(0.01)  # polls; pytest has the deadline
        assert 'status="500"' not in metrics
    assert "Traceback" not in caplog.text and "unexpected error" not in caplog.text


def test_bytes_that_are_not_http_get_400_also_within_a_body(url):
    with connect(url) as client:
        client.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert read_status(client) == 400
    with connect(url) as client:
        head = post_head("/v1/embeddings", 0).replace(
            b"Content-Length: 0", b"Transfer-Encoding: chunked"
        )
        client.sendall(head + b"zz\r\n")
        assert read_status(client) in (400, None)
    assert httpx.get(f"{url}/health").status_code == 200


@contextlib.contextmanager
def asgi_server(app):
    """Yields the URL and the set of open connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=protocol.DeadlineProtocol, lifespan="off", log_level="critical"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield url, server.server_state.connections
        finally:
            server.should_exit = True
            thread.join(30)


def large_answer(size):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})

    return app


def test_a_client_that_does_not_read_its_answer_is_disconnected(monkeypatch):
    monkeypatch.setattr(protocol, "STALLED_READ_S", 0.2)
    size = 64 * 2**20
    with (
        asgi_server(large_answer(size)) as (url, connections),
        connect(url, receive_buffer=4096) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        client.recv(1)
        while connections:
            time.sleep(0.01)  # polls; pytest has the deadline
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(2**20):
                received += len(part)
    assert received < size


def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch):
    monkeypatch.setattr(protocol, "STALLED_READ_S", 0.2)
    size = 32 * 2**20
    with asgi_server(large_answer(size)) as (url, _), connect(url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        received = 0
        while part := client.recv(2**20):
            received += len(part)
            time.sleep(0.01)
    assert received > size
