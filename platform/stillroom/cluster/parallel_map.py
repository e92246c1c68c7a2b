"""One function over many items: in Ray tasks on all nodes of the cluster, or in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from stillroom.cluster.actor_stream import get_result
from stillroom.cluster.placement import Place
from stillroom.observability.log_context import (
    LogContext,
    capture_context,
    configure_worker_logging,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 20  # of a task whose node or process dies; spot machines die often
TASKS_PER_CPU, MIN_TASKS = 4, 64  # that are submitted at a time


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], places: Sequence[Place]
) -> Iterator[Result]:
    """Yields the function's result for each item, in order.

    A task whose node dies is run again elsewhere: the function must give the same, and write the
    same files, each time. Items and results pass through Ray's object store. Keep them small: put
    the data into files and pass their names.

    Args:
        places: where the task of each item may run.

    Raises:
        UserError: the first that the function raises. No more items are started then.
    """
    tasks = [number for number, place in enumerate(places) if place is not Place.DRIVER]
    pool = _TaskPool(function, items, places, tasks)
    try:
        for number, place in enumerate(places):
            yield function(items[number]) if place is Place.DRIVER else pool.result(number)
    finally:
        pool.cancel()


class _TaskPool:
    """Runs the function for some of the items; a bounded number of tasks is in Ray's queues."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        places: Sequence[Place],
        numbers: Sequence[int],
    ):
        self.items, self.places, self.waiting = items, places, iter(numbers)
        self.running: dict[Any, int] = {}
        self.results: dict[int, Any] = {}
        if numbers:
            cpus = int(ray.cluster_resources().get("CPU", 0))
            self.max_running = max(MIN_TASKS, TASKS_PER_CPU * cpus)
            self.call = ray.put((function, capture_context()))
            remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_apply)
            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            self.tasks = {
                Place.ANY_NODE: remote.options(scheduling_strategy="SPREAD"),
                Place.DRIVER_NODE: remote.options(label_selector=here),
            }

    def result(self, number: int) -> Any:
        """The result of an item, once."""
        while number not in self.results:
            self._submit()
            [ready], _ = ray.wait([*self.running], num_returns=1)
            finished = self.running.pop(ready)
            self.results[finished] = get_result(ready)
        return self.results.pop(number)

    def _submit(self) -> None:
        while len(self.running) < self.max_running:
            number = next(self.waiting, None)
            if number is None:
                return
            task = self.tasks[self.places[number]]
            self.running[task.remote(self.call, self.items[number])] = number

    def cancel(self) -> None:
        """Ends the tasks that run, so that none writes afterwards."""
        for ref in self.running:
            ray.cancel(ref)
        if self.running:
            ray.wait([*self.running], num_returns=len(self.running))


def _apply(call: tuple[Callable[[Any], Any], LogContext], item: Any) -> Any:
    function, context = call
    configure_worker_logging(context)
    return function(item)
