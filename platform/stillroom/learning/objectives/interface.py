"""The interface of objectives: a step's batch → its loss and metrics."""

from collections.abc import Callable

import torch

from stillroom.learning.batch_types import Metrics

# (runner: MicroBatchRunner, batch) → (loss, metrics). The batch is of the type of `batch_types`
# that the objective takes; the loss is None when all of it is handed to `runner.add_token_loss`.
#
# Every loss is a mean over the worker's own queries or texts, taken against the passages of all
# workers; gradients are averaged over the workers. That equals one process with the whole batch.
Objective = Callable[..., tuple[torch.Tensor | None, Metrics]]
