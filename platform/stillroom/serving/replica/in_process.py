"""A replica in the router's process, called like a remote replica but without messages."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from ray.serve.exceptions import BackPressureError


@dataclass
class LocalHandle:
    """The part of Serve's DeploymentHandle that the dispatcher uses, for one local replica.

    Args:
        replica: its methods are coroutines.
        max_ongoing: concurrent calls; one more raises BackPressureError, as with Serve.
    """

    replica: Any
    max_ongoing: int
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
        """Start the call. Cancelling the task cancels the work."""
        return asyncio.create_task(self._call(args))

    async def _call(self, args: tuple[Any, ...]) -> Any:
        handle = self.handle
        if handle.ongoing >= handle.max_ongoing:
            raise BackPressureError(handle.ongoing, handle.max_ongoing)
        handle.ongoing += 1
        try:
            return await getattr(handle.replica, self.name)(*args)
        finally:
            handle.ongoing -= 1


@dataclass(frozen=True)
class InProcessReplica:
    """Describes the replica that a router process creates in itself; pickled to that process.

    Attributes:
        arguments: for Replica.
        max_ongoing: concurrent calls.
    """

    arguments: tuple[Any, ...]
    max_ongoing: int

    def create_handle(self) -> LocalHandle:
        """Create the replica, and a handle to it."""
        # Imported here: a router without a replica in it does not need torch.
        from stillroom.serving.replica.replica import Replica

        return LocalHandle(cast(Any, Replica).func_or_class(*self.arguments), self.max_ongoing)
