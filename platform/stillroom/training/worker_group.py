"""The process group of a run's workers, of whatever number there is, and when it gives up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from stillroom.errors import UserError
from stillroom.training.graceful_stop import listen


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


class GivesUp(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Ends a run at what its user has to mend: Ray would have the workers fail of it again."""

    fault: UserError | None = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        faults = map(_users, worker_group_status.errors.values())
        self.fault = next((fault for fault in faults if fault is not None), None)

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        if self.fault is not None:
            raise self.fault


def _users(error: BaseException | None) -> UserError | None:
    """What lies behind a worker's error, if that is its user's."""
    while error is not None and not isinstance(error, UserError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
