"""Many calls to a pool of actors, of which few are in flight: memory does not grow with their
number. What dies with its process or node is called again."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from stillroom.errors import UserError

Item = TypeVar("Item")
CALLS_PER_ACTOR = 2  # one that runs, and one that waits or prepares itself


def get_result(ref: Any) -> Any:
    """The result of a task or of an actor's method.

    Raises:
        UserError: the function's own, without Ray's traceback around it.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from None


def stream_actors(
    actors: Sequence[Any], call: Callable[[Any, Item], Any], items: Iterable[Item]
) -> Iterator[tuple[Item, Any]]:
    """(item, result) as they come; an actor gets its next item when it is done with one.

    An actor that has no node yet gets none.

    Args:
        actors: handles of actors with a method `ready`, which returns when they can work.
        call: starts the work on an item; returns the reference of its result.

    Raises:
        UserError: the first that an actor raises.
    """
    starting = {actor.ready.remote(): actor for actor in actors}
    running: dict[Any, tuple[Any, Item]] = {}
    free: deque[Any] = deque()  # actors, once for each call that they can take
    for item in items:
        while not free:
            yield from _next_results(starting, running, free)
        actor = free.popleft()
        running[call(actor, item)] = actor, item
    while running:
        yield from _next_results(starting, running, free)


def _next_results(
    starting: dict[Any, Any], running: dict[Any, tuple[Any, Item]], free: deque[Any]
) -> Iterator[tuple[Item, Any]]:
    """Waits for an actor that starts, or for a result."""
    [ref], _ = ray.wait([*starting, *running], num_returns=1)
    result = get_result(ref)
    if ref in starting:
        free.extend([starting.pop(ref)] * CALLS_PER_ACTOR)
    else:
        actor, item = running.pop(ref)
        free.append(actor)
        yield item, result
