"""Ray Train around the one loop: teacher and student differ by a `Task`."""

import functools
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train import ControllerError
from ray.train.torch import TorchTrainer

from stillroom.cluster.capacity import require
from stillroom.config.scale import Elastic, Tracking, Workers
from stillroom.encoders.contract import FILE as CONTRACT
from stillroom.errors import UserError
from stillroom.observability.log_context import said
from stillroom.storage.artifacts import Draft
from stillroom.training.checkpoints import LIST, Checkpoints
from stillroom.training.graceful_stop import STOPPED, Stopping, stopping
from stillroom.training.metric_sinks import check
from stillroom.training.task import Task
from stillroom.training.worker import _environment, _history, _kept, _shared, _work
from stillroom.training.worker_group import GivesUp, GroupConfig

log = logging.getLogger(__name__)


def fit(task: Task, scale: Workers, tracking: Tracking, out: Draft) -> dict[str, float]:
    """Trains under Ray Train and leaves the encoder, and metrics.jsonl, in the draft.

    A worker that dies is replaced, and the run goes on from the newest checkpoint; a run whose
    driver died goes on from there when the same step is run again, on any number of workers. Who
    is told to stop, or that a node is taken away, makes a checkpoint first.

    Returns:
        The figures of the step whose weights are kept.

    Raises:
        UserError: when the figures cannot be tracked as asked, checkpoints cannot be stored, or no
            cluster node will ever have what the workers ask for.
        SystemExit: when it was told to stop, and can be gone on from.
    """
    check(tracking)
    require(out.stage, scale, scale.fewest)
    name = f"{out.stage}-{out.path.name}"
    logs = out.store.place(f".logs/{name}")
    if tracking.tensorboard:
        log.info("%s: to watch it, run `tensorboard --logdir %s`", name, out.store.place(".logs"))
    checkpoints = Checkpoints(out.store, out.running)
    # The checkpoint that holds the trained encoder.
    done = checkpoints.newest(holding=CONTRACT)
    while done is None:
        with stopping() as stop:
            by = (said(), out.store.place(""))
            work = functools.partial(_work, task, scale, tracking, checkpoints, logs, *by)
            _train(work, _shared(task.settings), scale, stop)
        done = checkpoints.newest(holding=CONTRACT)
        if stop.told and done is None:
            log.info("%s: stopped; the same command goes on from there", name)
            sys.exit(STOPPED)
    folder = checkpoints.opened(done)
    lists = [path.name for path in folder.iterdir() if LIST.fullmatch(path.name)]
    shutil.copytree(
        folder, out.path, dirs_exist_ok=True, ignore=lambda place, names: set(lists) & set(names)
    )
    checkpoints.closed(done)
    return _kept(_history(out.path))


def _train(
    work: Callable[[Any], None], batches: tuple[int, ...], scale: Workers, told: Stopping
) -> None:
    """Workers train until they are done or stop."""
    elastic = scale.workers if isinstance(scale.workers, Elastic) else None
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            functools.partial(work, told.request),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scale.most if elastic is None else (elastic.min, elastic.max),
                elastic_resize_monitor_interval_s=60.0 if elastic is None else elastic.look_every_s,
                use_gpu=scale.gpus > 0,
                resources_per_worker={
                    "CPU": scale.cpus,
                    **({"GPU": scale.gpus} if scale.gpus else {}),
                },
                label_selector=scale.node_labels or None,
            ),
            run_config=ray.train.RunConfig(
                # Ray's own account of a run goes nowhere: it writes it in place, and what a killed
                # process leaves of it, it could not read.
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
                worker_runtime_env={"env_vars": _environment(scale)},
                callbacks=[GivesUp()],
            ),
            torch_config=GroupConfig(backend="nccl" if scale.gpus else "gloo", batches=batches),
        )
        try:
            trainer.fit()
        except ControllerError as fault:
            if isinstance(fault.controller_failure, UserError):
                raise fault.controller_failure from fault
            raise
