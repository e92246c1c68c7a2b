"""The process group of a run's workers, of whatever number there is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from stillroom.stages.stopping import listen


def taking(workers: int, batches: Sequence[int]) -> int:
    """How many of the workers can share batches of these sizes evenly."""
    return max(n for n in range(1, workers + 1) if not any(size % n for size in batches))


@dataclass
class GroupConfig(TorchConfig):
    """Ray's own, but that SIGTERM is a notice to its workers, and that those wait outside who get
    no even share.

    Args:
        batches: sizes of what the workers share.
    """

    batches: tuple[int, ...] = ()

    @property
    def backend_cls(self) -> Any:
        return _Group


class _Group(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        inside = taking(len(worker_group), backend_config.batches)
        super().on_start(_First(worker_group, inside), backend_config)
        worker_group.execute(listen)  # in the main thread, which alone may ask for signals


class _First:
    """The first workers of a group, as a group."""

    def __init__(self, group: Any, count: int):
        self.group, self.count = group, count

    def __len__(self) -> int:
        return self.count

    def execute_single_async(self, rank: int, function: Callable[..., Any], **named: Any) -> Any:
        return self.group.execute_single_async(rank, function, **named)

    def execute_single(self, rank: int, function: Callable[..., Any], **named: Any) -> Any:
        return self.group.execute_single(rank, function, **named)

    def execute(self, function: Callable[..., Any], **named: Any) -> list[Any]:
        return [self.execute_single(rank, function, **named) for rank in range(self.count)]
