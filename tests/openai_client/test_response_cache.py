"""The cache of responses."""

import threading

from stillroom.openai_client.requests import Request
from stillroom.openai_client.response_cache import ResponseCache


def test_the_first_response_of_a_request_stays_under_concurrent_writes(tmp_path):
    body = {"model": "m", "messages": [], "temperature": 1.0}
    same = Request.create("chat/completions", dict(reversed(body.items())))
    others = [
        Request.create("completions", body),
        Request.create("chat/completions", body, sample=1),
        Request.create("chat/completions", {**body, "temperature": 0.0}),
    ]
    request = Request.create("chat/completions", body)
    assert request.key == same.key
    assert len({request.key, *(other.key for other in others)}) == 4
    file = tmp_path / "new" / "answers.sqlite"
    start = threading.Barrier(4)

    def write(number):
        cache = ResponseCache(file)
        start.wait()
        for i in range(20):
            cache.put(f"{i}", f"{i} of {number}")
            cache.put(f"{number} {i}", "own")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reopened = ResponseCache(file)
    first = [reopened.get(f"{i}") for i in range(20)]
    assert all(text.startswith(f"{i} of ") for i, text in enumerate(first))
    assert all(reopened.get(f"{number} {i}") == "own" for number in range(4) for i in range(20))
    reopened.put("0", "later")
    assert reopened.get("0") == first[0] and reopened.get("none") is None
