"""What asks a run to stop while it can still make a checkpoint: SIGTERM to the driver, as `ray job
stop` sends it; SIGTERM to a worker; and a node that is taken away, of which Ray has notice."""

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

LOOKS_S = 0.5  # seconds between a worker's looks

HEARD_S = 30.0  # who has not looked for so long is not there

STOPPED = 128 + signal.SIGTERM  # exit code

log = logging.getLogger(__name__)

_terminated = threading.Event()  # this process, by SIGTERM


class _Request:
    """An actor beside the driver, which is asked by workers whether to stop."""

    def __init__(self) -> None:
        self.made, self.done, self.looked = False, False, -HEARD_S

    def make(self) -> bool:
        """Whether a worker will hear of it."""
        self.made = True
        return time.monotonic() - self.looked < HEARD_S

    def look(self) -> bool:
        self.looked = time.monotonic()
        return self.made

    def finish(self) -> None:
        self.done = True

    def finished(self) -> bool:
        return self.done


class Stopping:
    """The driver's part: whether it was told to stop, and the actor that tells the workers."""

    def __init__(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        self.request: Any = (
            ray.remote(num_cpus=0)(_Request)
            .options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))
            .remote()
        )
        self.told = False

    def __call__(self, number: int, frame: Any) -> None:
        """The signal's handler. At the second signal, or where nobody trains, it ends at once."""
        if self.told or not self._heard():
            sys.exit(STOPPED)
        self.told = True
        log.info("told to stop: makes a checkpoint first")

    def _heard(self) -> bool:
        try:
            return bool(ray.get(self.request.make.remote(), timeout=10))
        except RayError:  # the cluster is gone
            return False


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Takes SIGTERM as a request while workers train."""
    found = Stopping()
    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, found) if listens else None
    try:
        yield found
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)
        ray.kill(found.request)


class Notices:
    """A worker's part: a thread that looks out for what asks it to stop.

    Called, it says whether anything did. To ask Ray about nodes is a meeting of all workers, which
    is held beside the training, whose steps meet to agree anyway. Meetings are counted: there must
    be no other of Ray Train's from here on.
    """

    def __init__(self, request: Any):
        self.request = request
        self.found = False
        threading.Thread(target=self._look, name="notices", daemon=True).start()

    def __call__(self) -> bool:
        return self.found or _terminated.is_set()

    def done(self) -> None:
        """Tells those who wait outside that the others are done."""
        ray.get(self.request.finish.remote())

    def wait(self) -> None:
        """Until the others are done."""
        while not ray.get(self.request.finished.remote()):
            time.sleep(LOOKS_S)

    def _look(self) -> None:
        try:
            while not self.found:
                told = ray.get(self.request.look.remote())
                self.found = bool(told or ray.train.get_preemption_info())
                time.sleep(LOOKS_S)
        except Exception as fault:  # the run ends, or its driver has gone
            log.debug("no more notices: %s", fault)


def listen() -> None:
    """Makes SIGTERM a notice to this process; called in its main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: _terminated.set())
