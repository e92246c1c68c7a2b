"""Ray Train around the training loop: teacher and student differ by a `TrainingTask`."""

import functools
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.train.torch import TorchTrainer

from stillroom.cluster.capacity import require_capacity
from stillroom.config.scale import ElasticWorkers, Tracking, TrainingWorkers
from stillroom.encoders.contract import CONTRACT_FILE
from stillroom.errors import UserError
from stillroom.learning.batch_types import Metrics
from stillroom.observability.log_context import capture_context
from stillroom.storage.artifacts import Draft
from stillroom.training.checkpoints import FILE_LIST, Checkpoints
from stillroom.training.graceful_stop import STOPPED_EXIT_CODE, stop_on_sigterm
from stillroom.training.history import kept_step, read_history
from stillroom.training.metric_sinks import check_packages
from stillroom.training.task import TrainingTask
from stillroom.training.worker import WorkerSetup, train_worker
from stillroom.training.worker_group import ReleaseLostGroup, StopOnUserError, WorkerGroupConfig

log = logging.getLogger(__name__)
RESIZE_POLL_S = 60.0  # Ray Train's default; of no effect for a fixed number of workers


def fit(task: TrainingTask, scale: TrainingWorkers, tracking: Tracking, out: Draft) -> Metrics:
    """Trains under Ray Train; leaves the encoder and metrics.jsonl in the draft.

    A worker that dies is replaced, and the run resumes from the newest checkpoint. A run whose
    driver died resumes from there when the same command runs again, on any number of workers. On
    SIGTERM, or when a node is about to be taken away, a checkpoint is saved first.

    Returns:
        The metrics of the step whose weights are kept.

    Raises:
        UserError: when a tracking package is missing, checkpoints cannot be stored, or the cluster
            can never hold the workers.
        SystemExit: when the run was asked to stop; it can be resumed.
    """
    check_packages(tracking)
    require_capacity(out.stage, scale, scale.min_workers)
    name = f"{out.stage}-{out.path.name}"
    if tracking.tensorboard:
        log.info("%s: to watch it, run `tensorboard --logdir %s`", name, out.store.resolve(".logs"))
    checkpoints = Checkpoints(out.store, out.checkpoint_folder)
    setup = WorkerSetup(
        task, scale, tracking, checkpoints, out.store.resolve(f".logs/{name}"), capture_context()
    )
    # The last checkpoint of a run holds the trained encoder.
    finished = checkpoints.newest(with_file=CONTRACT_FILE)
    restarts = 0
    while finished is None:
        with stop_on_sigterm() as stop:
            work = functools.partial(train_worker, setup, stop.request)
            try:
                _run_workers(work, task.shared_batch_sizes, scale)
            except RayActorError:
                restarts += 1
                if restarts > scale.max_failures:
                    raise
                log.warning("%s: a worker was lost while training started; restarting", name)
        finished = checkpoints.newest(with_file=CONTRACT_FILE)
        if stop.requested and finished is None:
            log.info("%s: stopped; run the same command to resume", name)
            sys.exit(STOPPED_EXIT_CODE)
    _copy_encoder(checkpoints, finished, out.path)
    return kept_step(read_history(out.path))


def _run_workers(
    work: Callable[[], None], batch_sizes: tuple[int, ...], scale: TrainingWorkers
) -> None:
    """Runs `work` on every worker until all are done, or stop.

    Raises:
        UserError: of a worker.
        RayActorError: when a worker is lost at the moment in which Ray Train starts `work`: it
            restarts those that are lost before and after.
    """
    elastic = scale.workers if isinstance(scale.workers, ElasticWorkers) else None
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            work,
            scaling_config=ray.train.ScalingConfig(
                num_workers=(elastic.min, elastic.max) if elastic else scale.max_workers,
                elastic_resize_monitor_interval_s=elastic.poll_interval_s
                if elastic
                else RESIZE_POLL_S,
                use_gpu=scale.gpus > 0,
                resources_per_worker={
                    "CPU": scale.cpus,
                    **({"GPU": scale.gpus} if scale.gpus else {}),
                },
                label_selector=scale.node_labels or None,
            ),
            run_config=ray.train.RunConfig(
                # Deletes Ray's own state of a run: Ray overwrites it in place, and cannot read an
                # incomplete one of a killed process.
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
                worker_runtime_env={"env_vars": _worker_environment(scale)},
                callbacks=[StopOnUserError(), ReleaseLostGroup()],
            ),
            torch_config=WorkerGroupConfig(
                backend="nccl" if scale.gpus else "gloo", batch_sizes=batch_sizes
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            if isinstance(error.controller_failure, UserError | RayActorError):
                raise error.controller_failure from error
            raise


def _worker_environment(scale: TrainingWorkers) -> dict[str, str]:
    """Environment variables of the workers' processes."""
    threads = max(1, int(scale.cpus))
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),  # of tokenizers
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",  # libraries' warnings about one another
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would print each of our lines twice
    }
    if not scale.gpus:
        # Without it DeepSpeed looks for the machine's GPUs, which are not assigned to these
        # workers.
        variables["DS_ACCELERATOR"] = "cpu"
        # Importing DeepSpeed's Muon, which nothing here uses, loads a compiler for a second.
        variables["TORCHDYNAMO_DISABLE"] = "1"
        # A step allocates tensors of the same sizes as the last one did. By default malloc returns
        # large blocks to the system, and page faults then take a tenth of a student's step.
        variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    return variables


def _copy_encoder(checkpoints: Checkpoints, name: str, target: Path) -> None:
    """Copies the encoder out of the run's last checkpoint."""

    def file_lists(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if FILE_LIST.fullmatch(name)}

    shutil.copytree(checkpoints.fetch(name), target, dirs_exist_ok=True, ignore=file_lists)
    checkpoints.drop_copy(name)
