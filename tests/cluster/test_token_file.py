"""A token that others can read is reported."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.cluster.token_file import exposed_token_file
from stillroom.preflight import machine


@pytest.fixture
def token(tmp_path, monkeypatch):
    """The file that Ray itself generates, under a usual umask."""
    ray = Path(sys.executable).parent / "ray"
    subprocess.run(
        ["sh", "-c", f"umask 022; {ray} get-auth-token --generate"],
        env={**os.environ, "HOME": str(tmp_path)}, check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_the_token_that_ray_generates_is_reported_until_it_is_private(token):
    assert stat.S_IMODE(token.stat().st_mode) == 0o644
    assert exposed_token_file() == token
    (finding,) = (f for f in machine.examine_machine() if f.what == "Ray's token")
    assert not finding.ok and finding.fix == f"chmod 600 {token}"
    token.chmod(0o600)
    assert exposed_token_file() is None
    assert not any(f.what == "Ray's token" for f in machine.examine_machine())


def test_the_file_that_the_environment_names_is_checked(token, tmp_path, monkeypatch):
    other = tmp_path / "other"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert exposed_token_file() is None  # there is none
    other.touch(0o640)
    assert exposed_token_file() == other
