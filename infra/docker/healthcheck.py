"""Exits with 0 when the server or the Ray node in this container is healthy, else with 1."""

import contextlib
import urllib.request

URLS = (
    "http://127.0.0.1:8000/healthz",  # `stillroom serve`
    "http://127.0.0.1:52365/api/local_raylet_healthz",  # a Ray node's agent
)

for url in URLS:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=3) as response:
        if response.status == 200:
            raise SystemExit(0)
raise SystemExit(1)
