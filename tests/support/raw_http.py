"""HTTP/1.1 by hand, for what no client library would send."""

import json
import socket
from urllib.parse import urlsplit

# What Java's HttpClient and `curl --http2` send with every first request.
H2C = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
}
EMBED = json.dumps({"model": "tiny/student", "input": "a text"}).encode()


def connect(url, *, receive_buffer=None):
    """A connection to the URL's server; reading from it fails after a minute."""
    address = urlsplit(url)
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(60)
    client.connect((address.hostname, address.port))
    return client


def post_head(path, length, headers=None):
    """The request line and headers of a POST to 127.0.0.1 with a body of `length` bytes."""
    lines = {"Host": "127.0.0.1", "Content-Length": length, **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode()


def half_body(url, path="/v1/embeddings"):
    """A connection that has sent half of what it announced."""
    client = connect(url)
    client.sendall(post_head(path, 100) + b" " * 50)
    return client


def read_status(client):
    """The status of the next answer; None when the server has closed the connection."""
    try:
        head = client.recv(12)
    except ConnectionResetError:
        return None
    return int(head[9:12]) if head else None
