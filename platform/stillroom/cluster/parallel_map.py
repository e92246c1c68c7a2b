"""One function over many items: in this process, or in Ray Data's tasks."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from stillroom.errors import UserError
from stillroom.observability.log_context import Said, begin, said

Item = TypeVar("Item")

Made = TypeVar("Made")


def over(function: Callable[[Item], Made], items: Sequence[Item], *, spread: bool) -> list[Made]:
    """What the function makes of each item, in order.

    Its data belongs into files: items and results pass through Ray's object store, which thus
    holds next to nothing however much there is.

    Args:
        spread: over the cores of this machine, for that is where the files are.

    Raises:
        UserError: the first that is raised by the function; then no more items are begun.
    """
    if not spread or len(items) < 2:
        return [function(item) for item in items]
    rows = [{"number": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    found = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        functools.partial(_apply, function=function, by=said()), label_selector=here
    )
    made: dict[int, Made] = {}
    for row in found.iter_rows():
        one = pickle.loads(row["made"])
        if isinstance(one, UserError):
            raise one
        made[row["number"]] = one
    return [made[i] for i in range(len(items))]


def has_cores() -> bool:
    """Whether this machine takes tasks: the head of a cluster often does not."""
    here = ray.get_runtime_context().get_node_id()
    return any(n["NodeID"] == here and n["Resources"].get("CPU", 0) >= 1 for n in ray.nodes())


def _apply(row: dict[str, Any], function: Callable[[Any], Any], by: Said) -> dict[str, Any]:
    begin(by)
    try:
        made = function(pickle.loads(row["item"]))
    except UserError as fault:  # as a value: Ray would wrap it in errors of its own
        made = fault
    return {"number": row["number"], "made": pickle.dumps(made)}
