import pickle
from hashlib import sha256

import httpx
import pytest

from stillroom.errors import UserError
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.api_keys import ApiKeys
from stillroom.serving.http.auth import Authenticator, TokenBucket, is_loopback
from stillroom.serving.http.errors import error_response
from support.in_process_router import in_process_router
from support.tiny_releases import make_release


def owner(keys: ApiKeys, header):
    key = Authenticator(keys).find_key(header)
    return key and key.owner


def test_keys_are_read_from_the_environment_and_from_a_file_plain_or_hashed(tmp_path):
    file = tmp_path / "keys"
    hashed = sha256(b"sk-hashed").hexdigest()
    file.write_text(f"# comment\n\nsearch:sk-file\nsk-plain\nnight:sha256:{hashed}\n")
    keys = ApiKeys.read({"STILLROOM_API_KEYS": "sk-env, batch:sk-named"}, str(file))
    sent = ("sk-env", "sk-named", "sk-file", "sk-plain", "sk-hashed", hashed)
    assert [owner(keys, f"Bearer {key}") for key in sent] == [
        "unnamed", "batch", "search", "unnamed", "night", None,
    ]  # fmt: skip
    assert owner(keys, "bearer sk-plain") == "unnamed"


def test_a_key_may_have_letters_of_any_script():
    sent = "Bearer ключ".encode().decode("latin-1")  # as headers are decoded
    assert owner(ApiKeys.read({"STILLROOM_API_KEYS": "ann:ключ"}), sent) == "ann"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "sk-1", "Basic sk-1", "Bearer a:sk-1"]
)
def test_anything_but_a_bearer_key_is_refused(header):
    assert owner(ApiKeys.read({"STILLROOM_API_KEYS": "a:sk-1"}), header) is None


def test_no_key_is_pickled_with_the_application():
    assert b"sk-secret" not in pickle.dumps(ApiKeys.read({"STILLROOM_API_KEYS": "a:sk-secret"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no key"),
        ("\n# none yet\n", "holds no key"),
        ("batch:", "'batch' is empty"),
        ("a:sk-1\nb:sha256:abc", "keys:2: the key of 'b' is not a SHA-256"),
        ("a:sk-1 requests_per_hour=3", "not a rate. Write requests_per_minute or texts_per_minute"),
        ("a:sk-1 texts_per_minute=none", "'texts_per_minute=none' of 'a' is not a rate"),
        ("a:sk-1 texts_per_minute=0", "is not a rate"),
    ],
)
def test_an_invalid_keys_file_is_refused(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        ApiKeys.read({}, str(file))


def test_a_missing_keys_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        ApiKeys.read({}, str(tmp_path / "absent"))


def test_an_error_in_a_keys_file_does_not_reveal_the_key(tmp_path):
    file = tmp_path / "keys"
    file.write_text("a:sk-secret rate=3")
    with pytest.raises(UserError) as raised:
        ApiKeys.read({}, str(file))
    assert "sk-secret" not in str(raised.value)


def test_keys_are_revoked_and_added_while_the_router_runs(tmp_path):
    file = tmp_path / "keys"
    file.write_text("ann:sk-1\nbob:sk-2\n")
    authenticator = Authenticator(ApiKeys.read({}, str(file)))

    def owners():
        keys = [authenticator.find_key(f"Bearer sk-{number}") for number in (1, 2, 3)]
        return [key and key.owner for key in keys]

    assert owners() == ["ann", "bob", None]
    file.write_text("bob:sk-2\ncarol:sk-3 texts_per_minute=5\n")
    assert owners() == [None, "bob", "carol"]
    file.write_text("bob:sha256:not-hexadecimals\n")
    assert owners() == [None, "bob", "carol"]  # unchanged, and the log says why
    file.unlink()
    assert owners() == [None, "bob", "carol"]
    file.write_text("# all revoked: no one may call, not everyone\n")
    assert owners() == [None, None, None]
    assert authenticator.keys.configured


@pytest.mark.parametrize(
    ("withdrawals", "waits"),
    [
        ([(0, 1)] * 4, [0, 0, 0, 20]),  # three a minute, and the fourth when one has come back
        ([(0, 3), (19, 1), (21, 1)], [0, 1, 0]),
        ([(0, 1), (0, 10), (20, 10)], [0, 20, 0]),  # more than it holds needs a full one …
        ([(0, 10), (0, 1), (159, 1), (161, 1)], [0, 160, 1, 0]),  # … and a debt is worked off
        ([(0, 1), (600, 3), (600, 1)], [0, 0, 20]),  # idle for long, no more than a minute's worth
    ],
)
def test_a_token_bucket_admits_what_a_minute_allows(withdrawals, waits):
    bucket = TokenBucket(per_minute=3, level=3, updated_s=0)
    assert [bucket.take(amount, now) for now, amount in withdrawals] == pytest.approx(waits)


def test_each_owner_has_a_rate_and_learns_when_to_retry():
    entries = "ann:sk-1 requests_per_minute=2, bob:sk-2 texts_per_minute=60, cy:sk-3"
    now = [0.0]
    authenticator = Authenticator(
        ApiKeys.read({"STILLROOM_API_KEYS": entries}), clock=lambda: now[0]
    )
    ann, bob, cy = (authenticator.find_key(f"Bearer sk-{number}") for number in (1, 2, 3))
    for _ in range(2):
        authenticator.charge(ann, "requests", 1)
    with pytest.raises(ServingError) as refused:
        authenticator.charge(ann, "requests", 1)
    assert refused.value.kind is ErrorKind.OVERLOADED
    authenticator.charge(ann, "texts", 10_000)
    authenticator.charge(bob, "texts", 100)
    with pytest.raises(ServingError) as refused:
        authenticator.charge(bob, "texts", 1)
    answer = error_response("openai", refused.value)
    # A debt of 40, at one text a second.
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "41")
    now[0] = 41
    authenticator.charge(bob, "texts", 1)
    for _ in range(100):
        authenticator.charge(cy, "requests", 1)


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


# Over HTTP


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release") / "shared", shared_space=True)


def test_a_key_s_rates_hold_on_every_protocol_and_probes_need_no_key(release):
    keys = "ann:sk-1 requests_per_minute=4 texts_per_minute=6"
    with in_process_router(release, keys=ApiKeys.read({"STILLROOM_API_KEYS": keys})) as url:
        headers = {"Authorization": "Bearer sk-1"}
        openai_body = {"model": "tiny", "input": ["a", "b"]}
        requests = [("/v1/embeddings", openai_body), ("/embed", {"inputs": ["a"] * 4})]
        for path, body in requests:
            assert httpx.post(url + path, json=body).status_code == 401
            assert httpx.post(url + path, json=body, headers=headers).status_code == 200
        for path, body in requests * 2:
            answer = httpx.post(url + path, json=body, headers=headers)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/health", "/healthz", "/openapi.json"):
            assert httpx.get(url + path).status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "127.0.0.1@rebound.example"},
        {"x-forwarded-for": "203.0.113.9"},
        {"x-forwarded-host": "api.example"},
        {"x-real-ip": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
        {"via": "1.1 proxy"},
        {"cf-connecting-ip": "203.0.113.9"},
        {"true-client-ip": "203.0.113.9"},
    ],
)
def test_without_keys_requests_that_pass_through_a_proxy_or_a_foreign_name_are_refused(
    release, headers
):
    body = {"inputs": "a"}
    with in_process_router(release) as url:
        assert httpx.post(f"{url}/embed", json=body).status_code == 200
        refused = httpx.post(f"{url}/embed", json=body, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    with in_process_router(release, no_auth=True) as url:
        assert httpx.post(f"{url}/embed", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"api-key": "sk-1"}, {"x-api-key": "sk-1"}])
def test_a_key_may_come_in_the_header_that_other_apis_use(release, headers):
    keys = ApiKeys.read({"STILLROOM_API_KEYS": "ann:sk-1"})
    with in_process_router(release, keys=keys) as url:
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        wrong = {name: "sk-2" for name in headers}
        assert httpx.get(f"{url}/v1/models", headers=wrong).status_code == 401
        both = headers | {"authorization": "Bearer sk-2"}
        assert httpx.get(f"{url}/v1/models", headers=both).status_code == 401


@pytest.mark.parametrize(
    ("origin", "media_type", "status"),
    [
        ("https://other.example", "text/plain", 401),
        ("https://other.example", "application/x-www-form-urlencoded", 401),
        ("https://other.example", None, 401),
        ("null", "text/plain", 401),
        ("https://other.example", "application/json; charset=utf-8", 200),  # after a preflight
        ("own", "text/plain", 200),
        (None, "text/plain", 200),
    ],
)
def test_without_keys_a_page_of_another_site_cannot_post_what_browsers_send_unasked(
    release, origin, media_type, status
):
    with in_process_router(release) as url:
        headers = {"origin": url if origin == "own" else origin, "content-type": media_type}
        sent = {name: value for name, value in headers.items() if value}
        answer = httpx.post(f"{url}/embed", content=b'{"inputs": "a"}', headers=sent)
        assert answer.status_code == status


def test_pages_of_other_sites_may_read_answers_only_with_cors_origins(release):
    preflight = {"origin": "https://ours.example", "access-control-request-method": "POST"}
    with in_process_router(release) as url:
        answer = httpx.options(f"{url}/embed", headers=preflight)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (405, False)
    with in_process_router(release, cors_origins=("https://ours.example",)) as url:
        allowed = httpx.options(f"{url}/embed", headers=preflight).headers
        assert allowed["access-control-allow-origin"] == "https://ours.example"
        other = httpx.options(
            f"{url}/embed", headers=preflight | {"origin": "https://other.example"}
        )
        assert "access-control-allow-origin" not in other.headers
