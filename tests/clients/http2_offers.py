"""Clients that offer HTTP/2 first, against a real server: `make clients`. Needs java and curl."""

import json
import subprocess
from pathlib import Path

import pytest

from support.serve_process import serve_process
from support.tiny_releases import make_release

JAVA = Path(__file__).parent / "java" / "Embed.java"
BODY = json.dumps({"model": "tiny/student", "input": "a text " * 5000})


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    release = make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)
    with serve_process(release) as (url, _):
        yield url


def test_the_jdk_s_client_is_answered(url):
    command = ["java", str(JAVA), f"{url}/v1/embeddings", BODY]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answers = [line.split(" ", 1) for line in output.splitlines()]
    assert [status for status, _ in answers] == ["200"] * 3
    assert all(json.loads(body)["data"] for _, body in answers)


def test_curl_with_http2_is_answered(url):
    command = ["curl", "--silent", "--fail", "--http2", f"{url}/v1/embeddings", "--data", BODY]
    headers = ["--header", "Content-Type: application/json", "--header", "Expect: 100-continue"]
    output = subprocess.run([*command, *headers], check=True, capture_output=True).stdout
    assert json.loads(output)["data"]
