"""One function over many items: in this process, or in Ray Data's tasks on this machine."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from stillroom.errors import UserError
from stillroom.observability.log_context import (
    LogContext,
    capture_context,
    configure_worker_logging,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, parallel: bool
) -> list[Result]:
    """The function's result for each item, in order.

    Items and results pass through Ray's object store. Keep them small: put the data into files and
    pass their paths.

    Args:
        parallel: use all cores of this machine, where the files are; False stays in this process.

    Raises:
        UserError: the first that the function raises. No more items are started then.
    """
    if not parallel or len(items) < 2:
        return [function(item) for item in items]
    rows = [{"number": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
    this_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        functools.partial(_apply, function=function, context=capture_context()),
        label_selector=this_node,
    )
    results: dict[int, Result] = {}
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, UserError):
            raise result
        results[row["number"]] = result
    return [results[i] for i in range(len(items))]


def this_node_runs_tasks() -> bool:
    """Whether Ray may run tasks on this machine: the head of a cluster often has no CPUs for it."""
    node_id = ray.get_runtime_context().get_node_id()
    return any(
        node["NodeID"] == node_id and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()
    )


def _apply(
    row: dict[str, Any], function: Callable[[Any], Any], context: LogContext
) -> dict[str, Any]:
    configure_worker_logging(context)
    try:
        result = function(pickle.loads(row["item"]))
    except UserError as error:  # returned as a value: Ray would wrap it in its own errors
        result = error
    return {"number": row["number"], "result": pickle.dumps(result)}
