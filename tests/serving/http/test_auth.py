import pickle
from hashlib import sha256

import httpx
import pytest

from stillroom.errors import UserError
from stillroom.serving.errors import ApiError
from stillroom.serving.http.auth import Bucket, Guard, Keys, is_loopback
from support.in_process_router import near
from support.tiny_releases import make_release


def owner(keys: Keys, header):
    key = Guard(keys).key(header)
    return key and key.owner


def test_keys_come_from_the_environment_and_from_a_file_in_the_clear_or_hashed(tmp_path):
    file = tmp_path / "keys"
    hashed = sha256(b"sk-hashed").hexdigest()
    file.write_text(f"# comment\n\nsearch:sk-file\nsk-plain\nnight:sha256:{hashed}\n")
    keys = Keys.read({"STILLROOM_API_KEYS": "sk-env, batch:sk-named"}, str(file))
    given = ("sk-env", "sk-named", "sk-file", "sk-plain", "sk-hashed", hashed)
    assert [owner(keys, f"Bearer {key}") for key in given] == [
        "unnamed", "batch", "search", "unnamed", "night", None,
    ]  # fmt: skip
    assert owner(keys, "bearer sk-plain") == "unnamed"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "sk-1", "Basic sk-1", "Bearer a:sk-1"]
)
def test_anything_but_a_bearer_key_is_refused(header):
    assert owner(Keys.read({"STILLROOM_API_KEYS": "a:sk-1"}), header) is None


def test_no_key_travels_with_the_application():
    assert b"sk-secret" not in pickle.dumps(Keys.read({"STILLROOM_API_KEYS": "a:sk-secret"}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no key"),
        ("\n# none yet\n", "holds no key"),
        ("batch:", "'batch' is empty"),
        ("a:sk-1\nb:sha256:abc", "keys:2: the key of 'b' is not a SHA-256"),
        ("a:sk-1 requests_per_hour=3", "no rate. Write requests_per_minute or texts_per_minute"),
        ("a:sk-1 texts_per_minute=none", "'texts_per_minute=none' of 'a' is no rate"),
        ("a:sk-1 texts_per_minute=0", "is no rate"),
    ],
)
def test_a_faulty_keys_file_is_not_deployed(tmp_path, content, said):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        Keys.read({}, str(file))


def test_a_missing_keys_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Keys.read({}, str(tmp_path / "absent"))


def test_a_fault_in_a_keys_file_does_not_tell_the_key(tmp_path):
    file = tmp_path / "keys"
    file.write_text("a:sk-secret rate=3")
    with pytest.raises(UserError) as raised:
        Keys.read({}, str(file))
    assert "sk-secret" not in str(raised.value)


def test_keys_are_revoked_and_added_while_the_router_runs(tmp_path):
    file = tmp_path / "keys"
    file.write_text("ann:sk-1\nbob:sk-2\n")
    guard = Guard(Keys.read({}, str(file)))

    def known():
        found = [guard.key(f"Bearer sk-{number}") for number in (1, 2, 3)]
        return [key and key.owner for key in found]

    assert known() == ["ann", "bob", None]
    file.write_text("bob:sk-2\ncarol:sk-3 texts_per_minute=5\n")
    assert known() == [None, "bob", "carol"]
    file.write_text("bob:sha256:a-slip-of-the-pen\n")
    assert known() == [None, "bob", "carol"]  # as they were, and the log says why
    file.unlink()
    assert known() == [None, "bob", "carol"]
    file.write_text("# all revoked: no one may call, not everyone\n")
    assert known() == [None, None, None]
    assert guard.keys.configured


@pytest.mark.parametrize(
    ("taken", "waits"),
    [
        ([(0, 1)] * 4, [0, 0, 0, 20]),  # three a minute, and the fourth when one has come back
        ([(0, 3), (19, 1), (21, 1)], [0, 1, 0]),
        ([(0, 1), (0, 10), (20, 10)], [0, 20, 0]),  # more than it holds needs a full one …
        ([(0, 10), (0, 1), (159, 1), (161, 1)], [0, 160, 1, 0]),  # … and a debt is worked off
        ([(0, 1), (600, 3), (600, 1)], [0, 0, 20]),  # idle for long, no more than a minute's worth
    ],
)
def test_a_bucket_lets_through_what_a_minute_allows(taken, waits):
    bucket = Bucket(per_minute=3, level=3, at=0)
    found = [bucket.wait(amount, now) for now, amount in taken]
    assert found == pytest.approx(waits)


def test_each_owner_spends_their_own_rate_and_is_told_when_to_come_back():
    entries = "ann:sk-1 requests_per_minute=2, bob:sk-2 texts_per_minute=60, cy:sk-3"
    now = [0.0]
    guard = Guard(Keys.read({"STILLROOM_API_KEYS": entries}), clock=lambda: now[0])
    ann, bob, cy = (guard.key(f"Bearer sk-{number}") for number in (1, 2, 3))
    for _ in range(2):
        guard.spend(ann, "requests", 1)
    with pytest.raises(ApiError) as refused:
        guard.spend(ann, "requests", 1)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    guard.spend(ann, "texts", 10_000)
    guard.spend(bob, "texts", 100)
    with pytest.raises(ApiError) as refused:
        guard.spend(bob, "texts", 1)
    assert refused.value.headers() == {"Retry-After": "41"}  # a debt of 40, at one text a second
    now[0] = 41
    guard.spend(bob, "texts", 1)
    for _ in range(100):
        guard.spend(cy, "requests", 1)


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


# At the door


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


def test_a_key_s_rates_hold_on_every_protocol_and_probes_need_none(release):
    keys = "ann:sk-1 requests_per_minute=4 texts_per_minute=6"
    with near(release, keys=Keys.read({"STILLROOM_API_KEYS": keys})) as url:
        headers = {"Authorization": "Bearer sk-1"}
        ours = {"model": "tiny", "input": ["a", "b"]}
        asked = [("/v1/embeddings", ours), ("/embed", {"inputs": ["a"] * 4})]
        for path, body in asked:
            assert httpx.post(url + path, json=body).status_code == 401
            assert httpx.post(url + path, json=body, headers=headers).status_code == 200
        for path, body in asked * 2:
            answer = httpx.post(url + path, json=body, headers=headers)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/health", "/healthz", "/openapi.json"):
            assert httpx.get(url + path).status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 401


@pytest.mark.parametrize(
    "headers", [{"host": "rebound.example"}, {"x-forwarded-for": "203.0.113.9"}]
)
def test_without_keys_what_only_passes_through_this_machine_is_refused(release, headers):
    body = {"inputs": "a"}
    with near(release) as url:
        assert httpx.post(f"{url}/embed", json=body).status_code == 200
        refused = httpx.post(f"{url}/embed", json=body, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    with near(release, no_auth=True) as url:
        assert httpx.post(f"{url}/embed", json=body, headers=headers).status_code == 200


def test_pages_of_other_sites_may_read_answers_only_where_the_operator_says_so(release):
    ask = {"origin": "https://ours.example", "access-control-request-method": "POST"}
    with near(release) as url:
        answer = httpx.options(f"{url}/embed", headers=ask)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (405, False)
    with near(release, cors_origins=("https://ours.example",)) as url:
        allowed = httpx.options(f"{url}/embed", headers=ask).headers
        assert allowed["access-control-allow-origin"] == "https://ours.example"
        other = httpx.options(f"{url}/embed", headers=ask | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
