"""Exit status 0 where a server or a node of Ray's in this container says that it is well."""

import contextlib
import urllib.request

PLACES = (
    "http://127.0.0.1:8000/healthz",  # `stillroom serve`
    "http://127.0.0.1:52365/api/local_raylet_healthz",  # a node's agent
)

for place in PLACES:
    with contextlib.suppress(OSError), urllib.request.urlopen(place, timeout=3) as answer:
        if answer.status == 200:
            raise SystemExit(0)
raise SystemExit(1)
