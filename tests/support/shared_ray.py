"""One Ray on this machine for all tests of a process that need no cluster of their own.

Starting and stopping Ray takes seconds, and a worker that has imported torch serves the next test.
Use it through the fixture `ray_cluster`; a test with a cluster of its own calls `stop` first.
"""

import time

import ray

CPUS = 2
RELEASE_S = 5  # how long actors of a finished module may take to end


def start() -> str:
    """Starts Ray unless it runs; returns its address."""
    if not ray.is_initialized():
        ray.init("local", num_cpus=CPUS, include_dashboard=False, configure_logging=False)
    return str(ray.get_runtime_context().gcs_address)


def stop() -> None:
    """Stops Ray if it runs."""
    ray.shutdown()


def release() -> None:
    """Keeps Ray for the next module, or stops it where this one left an actor behind."""
    deadline = time.monotonic() + RELEASE_S
    while ray.is_initialized() and ray.available_resources().get("CPU", 0) < CPUS:
        if time.monotonic() > deadline:
            stop()
        time.sleep(0.1)  # polls for a condition, with a deadline
