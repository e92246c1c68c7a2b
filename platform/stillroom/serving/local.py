"""An encoder in the router's own process, asked as replicas elsewhere are: no message, no Ray."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from ray.serve.exceptions import BackPressureError


@dataclass(frozen=True)
class Local:
    """Which encoder a router is to have within it.

    Attributes:
        arguments: of its Replica.
        most: calls at once.
    """

    arguments: tuple[Any, ...]
    most: int

    def handle(self) -> "LocalHandle":
        # Here, for a router that has none within it spares itself torch.
        from stillroom.serving.replica import Replica

        return LocalHandle(cast(Any, Replica).func_or_class(*self.arguments), self.most)


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
