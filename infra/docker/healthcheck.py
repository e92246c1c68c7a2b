"""Exits with 0 when the server or the Ray node in this container is healthy, else with 1.

With the argument `pod`, the node must be healthy, and Serve's proxy too where the variable SERVES
is `true`: on the pods of a RayService, to which KubeRay sends requests.
"""

import os
import sys
import urllib.request

SERVER = "http://127.0.0.1:8000/healthz"  # `stillroom serve`
PROXY = "http://127.0.0.1:8000/-/healthz"  # Ray Serve's
NODE = "http://127.0.0.1:52365/api/local_raylet_healthz"  # a Ray node's agent


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if sys.argv[1:] == ["pod"]:
    healthy = answers(NODE) and (os.environ.get("SERVES") != "true" or answers(PROXY))
else:
    healthy = answers(SERVER) or answers(NODE)
raise SystemExit(not healthy)
