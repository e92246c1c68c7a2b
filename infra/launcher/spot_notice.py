"""Drains this machine's Ray node when the cloud is about to take the machine away.

    python spot_notice.py aws      # or: gcp

Asks the machine's own metadata service. AWS says so two minutes before, Google Cloud 30 seconds,
and an hour before it stops a machine with GPUs, of any kind, for maintenance.
Ray then gives the node no new work, Ray Train's workers save a checkpoint, and Serve moves its
replicas. Uses the standard library only, so that it costs a node nothing while it waits.
"""

import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = os.environ.get("METADATA_ADDRESS", "http://169.254.169.254")
POLL_INTERVAL_S = 2.0
GCP_NOTICE_S = 30.0
GCP_MAINTENANCE_S = 300.0  # of the hour; to save a checkpoint or to move replicas
MARGIN_S = 5.0  # before the machine goes
ATTEMPTS = 5  # to tell the head


def get(path: str, headers: dict[str, str], method: str = "GET") -> str:
    """The body of a metadata path. Raises OSError, also for any status but 200."""
    request = urllib.request.Request(METADATA + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=5) as response:
        return str(response.read().decode())


def aws_notice() -> float | None:
    """Seconds until the machine is stopped or terminated; None without a notice."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = get("/latest/api/token", lifetime, "PUT")
    try:
        text = get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    at = datetime.datetime.fromisoformat(json.loads(text)["time"].replace("Z", "+00:00"))
    return (at - datetime.datetime.now(datetime.UTC)).total_seconds()


def gcp_notice() -> float | None:
    """Seconds until the machine is stopped; None without a notice."""

    def instance(name: str) -> str:
        return get(f"/computeMetadata/v1/instance/{name}", {"Metadata-Flavor": "Google"}).strip()

    if instance("preempted") == "TRUE":
        return GCP_NOTICE_S
    if instance("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
        return GCP_MAINTENANCE_S
    return None


def wait_for_notice(cloud: str) -> float:
    """Waits for a notice. Returns the seconds that remain."""
    notice = {"aws": aws_notice, "gcp": gcp_notice}[cloud]
    while True:
        try:
            if (remaining_s := notice()) is not None:
                return remaining_s
        except (OSError, ValueError, KeyError) as error:  # the service fails at times
            print(f"the metadata service: {error!r}", flush=True)
        time.sleep(POLL_INTERVAL_S)


def drain(remaining_s: float) -> None:
    """Tells the head that this node leaves. Raises CalledProcessError when no attempt succeeds."""
    deadline = time.monotonic() + max(0.0, remaining_s - MARGIN_S)
    for attempt in range(1, ATTEMPTS + 1):
        left_s = max(0, int(deadline - time.monotonic()))
        done = subprocess.run(
            [
                "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message", "the cloud takes this machine away",
                "--deadline-remaining-seconds", str(left_s),
            ],
            check=attempt == ATTEMPTS,
        )  # fmt: skip
        if done.returncode == 0:
            print(f"drains, with {left_s} s left", flush=True)
            return
        time.sleep(1)


if __name__ == "__main__":
    drain(wait_for_notice(sys.argv[1]))
