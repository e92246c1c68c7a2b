"""The process group of a run's workers, and what happens when a run ends at an error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from stillroom.cluster.ray_private import controller_callbacks
from stillroom.errors import UserError, user_error_within
from stillroom.training.graceful_stop import watch_sigterm

WorkerGroupCallback, ControllerCallback = controller_callbacks()


def usable_workers(workers: int, batch_sizes: Sequence[int]) -> int:
    """The largest number of available workers that divides all these batch sizes evenly."""
    return max(n for n in range(1, workers + 1) if not any(size % n for size in batch_sizes))


@dataclass
class WorkerGroupConfig(TorchConfig):
    """Ray's `TorchConfig`, with SIGTERM as a request to stop, and with only as many workers in the
    process group as divide the batches evenly. The others wait.

    Args:
        batch_sizes: of the batches that the workers divide among them.
    """

    batch_sizes: tuple[int, ...] = ()

    @property
    def backend_cls(self) -> Any:
        return _WorkerGroupBackend


class _WorkerGroupBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        count = usable_workers(len(worker_group), backend_config.batch_sizes)
        super().on_start(_FirstWorkers(worker_group, count), backend_config)
        worker_group.execute(watch_sigterm)  # in the main thread: others cannot handle signals


class _FirstWorkers:
    """The first `count` workers of a group, as a group."""

    def __init__(self, group: Any, count: int):
        self.group, self.count = group, count

    def __len__(self) -> int:
        return self.count

    def execute_single_async(self, rank: int, function: Callable[..., Any], **kwargs: Any) -> Any:
        return self.group.execute_single_async(rank, function, **kwargs)

    def execute_single(self, rank: int, function: Callable[..., Any], **kwargs: Any) -> Any:
        return self.group.execute_single(rank, function, **kwargs)

    def execute(self, function: Callable[..., Any], **kwargs: Any) -> list[Any]:
        return [self.execute_single(rank, function, **kwargs) for rank in range(self.count)]


class StopOnUserError(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc, valid-type]
    """Ends a run at an error that the user has to correct; Ray would restart the workers."""

    error: UserError | None = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        errors = map(user_error_within, worker_group_status.errors.values())
        self.error = next((error for error in errors if error is not None), None)

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        if self.error is not None:
            raise self.error


class ReleaseLostGroup(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc, valid-type]
    """Frees the resources of a group that loses a worker while training starts in it.

    Ray Train forgets such a group, and its resources would be taken until the job ends.
    """

    group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.group = worker_group

    async def before_controller_shutdown(self) -> None:
        if self.group is not None and self.group.has_started():
            self.group.shutdown()
