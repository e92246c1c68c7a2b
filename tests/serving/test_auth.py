import pickle

import pytest

from stillroom.errors import UserError
from stillroom.serving.auth import Keys, is_loopback


def test_keys_come_from_the_environment_and_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# comment\n\nsearch:sk-file\nsk-plain\n")
    keys = Keys.read({"STILLROOM_API_KEYS": "sk-env, batch:sk-named"}, str(file))
    owners = {key: keys.owner(f"Bearer {key}") for key in ("sk-env", "sk-named", "sk-file")}
    assert owners == {"sk-env": "unnamed", "sk-named": "batch", "sk-file": "search"}
    assert keys.owner("bearer sk-plain") == "unnamed"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "sk-1", "Basic sk-1", "Bearer a:sk-1"]
)
def test_anything_but_a_bearer_key_is_refused(header):
    assert Keys.read({"STILLROOM_API_KEYS": "a:sk-1"}).owner(header) is None


def test_no_key_travels_with_the_application():
    assert b"sk-secret" not in pickle.dumps(Keys.read({"STILLROOM_API_KEYS": "a:sk-secret"}))


@pytest.mark.parametrize("content", ["", "\n# none yet\n"])
def test_a_keys_file_without_keys_does_not_open_the_door(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UserError, match="holds no key"):
        Keys.read({}, str(file))


def test_a_missing_keys_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Keys.read({}, str(tmp_path / "absent"))


def test_a_name_without_its_key_is_refused():
    with pytest.raises(UserError, match="'batch' is empty"):
        Keys.read({"STILLROOM_API_KEYS": "batch:"})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("example.com", False),
    ],
)
def test_only_this_machine_is_loopback(host, loopback):
    assert is_loopback(host) is loopback
