"""An encoder in the router's own process, asked as replicas elsewhere are: no message, no Ray."""

from dataclasses import dataclass
from typing import Any, cast

from stillroom.serving.routing.handles import LocalHandle


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
        from stillroom.serving.replica.replica import Replica

        return LocalHandle(cast(Any, Replica).func_or_class(*self.arguments), self.most)
