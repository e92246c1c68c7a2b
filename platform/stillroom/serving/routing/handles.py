"""TODO docstring: serving/routing/handles.py."""

import asyncio
from dataclasses import dataclass
from typing import Any

from ray.serve.exceptions import BackPressureError


@dataclass
class LocalHandle:
    """What the dispatcher asks of Serve's handle, of one replica that is here.

    Args:
        replica: its methods are coroutines.
        most: of its calls at once; one more raises BackPressureError, as it does with Serve.
    """

    replica: Any
    most: int
    ongoing: int = 0

    def options(self) -> "LocalHandle":
        return self

    def running_replicas_populated(self) -> bool:
        return True

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)


@dataclass(frozen=True)
class _Method:
    handle: LocalHandle
    name: str

    def remote(self, *args: Any) -> "asyncio.Task[Any]":
        """Begin the call; to cancel the task is to cancel the work."""
        return asyncio.create_task(self._call(args))

    async def _call(self, args: tuple[Any, ...]) -> Any:
        handle = self.handle
        if handle.ongoing >= handle.most:
            raise BackPressureError(handle.ongoing, handle.most)
        handle.ongoing += 1
        try:
            return await getattr(handle.replica, self.name)(*args)
        finally:
            handle.ongoing -= 1
