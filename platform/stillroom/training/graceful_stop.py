"""Stops a run so that it can still save a checkpoint.

A run is asked to stop by SIGTERM to the driver, as `ray job stop` sends it, by SIGTERM to a worker,
or by Ray's notice that a node will be removed.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_INTERVAL_S = 0.5
WORKER_TIMEOUT_S = 30.0  # without a poll for this long, no worker is running
STOPPED_EXIT_CODE = 128 + signal.SIGTERM
log = logging.getLogger(__name__)
_terminated = threading.Event()  # this process got SIGTERM


class _StopRequest:
    """An actor beside the driver, which workers poll."""

    def __init__(self) -> None:
        self.requested, self.done, self.polled_at = False, False, -WORKER_TIMEOUT_S

    def request_stop(self) -> bool:
        """Requests a stop. Returns whether workers poll, and so will see it."""
        self.requested = True
        return time.monotonic() - self.polled_at < WORKER_TIMEOUT_S

    def poll(self) -> bool:
        """Whether the run should stop."""
        self.polled_at = time.monotonic()
        return self.requested

    def mark_done(self) -> None:
        self.done = True

    def is_done(self) -> bool:
        return self.done


class StopHandler:
    """The driver's side: a handler of SIGTERM.

    Attributes:
        request: the actor that workers poll.
        requested: whether the driver was asked to stop.
    """

    def __init__(self) -> None:
        this_node = ray.get_runtime_context().get_node_id()
        self.request: Any = (
            ray.remote(num_cpus=0)(_StopRequest)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(this_node, soft=False))
            .remote()
        )
        self.requested = False

    def __call__(self, number: int, frame: Any) -> None:
        """Handles the signal. The second one, or one while no worker polls, ends the driver."""
        if self.requested or not self._reaches_workers():
            sys.exit(STOPPED_EXIT_CODE)
        self.requested = True
        log.info("asked to stop: saves a checkpoint first")

    def _reaches_workers(self) -> bool:
        try:
            return bool(ray.get(self.request.request_stop.remote(), timeout=10))
        except RayError:  # the cluster is gone
            return False


@contextmanager
def stop_on_sigterm() -> Iterator[StopHandler]:
    """In this block, SIGTERM asks the workers to stop."""
    handler = StopHandler()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, handler) if in_main_thread else None
    try:
        yield handler
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
        ray.kill(handler.request)


class StopWatcher:
    """A worker's side: a thread that watches for requests to stop. Call it to check for one.

    Querying Ray about its nodes is a collective of all workers. It runs in parallel with the
    training, whose steps agree on stopping anyway. Ray Train counts collectives: none of its other
    collectives may follow once this exists.

    Args:
        request: the driver's actor.
    """

    def __init__(self, request: Any):
        self.request = request
        self.stop = False
        threading.Thread(target=self._watch, name="stop-watcher", daemon=True).start()

    def __call__(self) -> bool:
        return self.stop or _terminated.is_set()

    def mark_done(self) -> None:
        """Ends `wait_until_done` on the workers outside the process group."""
        ray.get(self.request.mark_done.remote())

    def wait_until_done(self) -> None:
        """Waits until the workers of the process group are done."""
        while not ray.get(self.request.is_done.remote()):
            time.sleep(POLL_INTERVAL_S)

    def _watch(self) -> None:
        try:
            while not self.stop:
                requested = ray.get(self.request.poll.remote())
                self.stop = bool(requested or ray.train.get_preemption_info())
                time.sleep(POLL_INTERVAL_S)
        except Exception as error:  # the run ends, or its driver is gone
            log.debug("no longer watches for requests to stop: %s", error)


def watch_sigterm() -> None:
    """Makes SIGTERM a request to stop this worker. Call it in the main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: _terminated.set())
