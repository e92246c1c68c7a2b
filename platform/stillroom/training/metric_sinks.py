"""Where a run's metrics go: TensorBoard, Ray's metrics, and optionally MLflow or W&B."""

import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check

from stillroom.cluster.gauges import Gauges
from stillroom.config.scale import Tracking
from stillroom.errors import UserError, one_line
from stillroom.learning.batch_types import Metrics
from stillroom.learning.loop import SCORE_METRIC

log = logging.getLogger(__name__)
FLUSH_INTERVAL_S = 10  # after which TensorBoard shows a step
MLFLOW_EXPERIMENT = "stillroom"


def progress_line(metrics: Metrics, seconds_left: float) -> str:
    """A step's metrics as one line of a job's log."""
    step, steps = int(metrics["step"]), int(metrics["steps"])
    parts = [
        f"step {step}/{steps}",
        f"loss {metrics['loss']:.4f}",
        f"norm {metrics['gradient_norm']:.3g}",
        f"lr {metrics['learning_rate']:.2e}",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
        f"padding {metrics['padding']:.0%}",
        f"{metrics['memory_gib']:.1f} GiB",
    ]
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if SCORE_METRIC in metrics:
        parts.append(f"{SCORE_METRIC} {metrics[SCORE_METRIC]:.4f}")
    if step < steps:
        parts.append(f"ETA {timedelta(seconds=math.ceil(seconds_left))}")
    return "  ".join(parts)


def check_packages(tracking: Tracking) -> None:
    """Checks that the packages of the recipe's trackers are installed.

    Raises:
        UserError: when one is missing.
    """
    for package, target in (("mlflow", tracking.mlflow), ("wandb", tracking.wandb)):
        if target is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"scale.tracking.{package}",
                f"the package {package} is not installed",
                "Run `pip install stillroom[tracking]`, or set it to null",
            )


class Sink(Protocol):
    """Takes the metrics of every step, in order, once."""

    def write(self, step: int, metrics: Metrics) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def open_sinks(tracking: Tracking, name: str, logs: str, start_step: int) -> list[Sink]:
    """The sinks that the recipe enables.

    Args:
        name: of the run. A resumed run continues the curves of that name.
        logs: a folder, or an `s3://` or `gs://` URI, for TensorBoard's files.
        start_step: steps that an earlier process wrote.

    Raises:
        UserError: when MLflow or Weights & Biases refuses the run.
    """
    sinks: list[Sink] = []
    if tracking.tensorboard:
        try:
            sinks.append(TensorBoard(logs, start_step))
        except Exception as error:  # from boto3, Google's client or the file system
            _warn(f"TensorBoard's files cannot be written to {logs}", error)
    servers = (("mlflow", tracking.mlflow, Mlflow), ("wandb", tracking.wandb, Wandb))
    for field, target, sink_class in servers:
        if target is not None:
            try:
                sinks.append(sink_class(target, name, logs))
            except Exception as error:  # each package has its own errors
                raise UserError(
                    f"scale.tracking.{field}={target}",
                    f"cannot be written to: {one_line(error, 300).rstrip('.')}",
                    "Correct it, log in or start its server, or set it to null",
                ) from error
    return sinks


class Tracker:
    """Writes every step's metrics to every sink. A sink that fails is dropped."""

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = list(sinks)

    def __call__(self, metrics: Metrics) -> None:
        # MLflow and TensorBoard allow no "@" in a metric's name.
        curves = {
            name.replace("@", "_at_"): value
            for name, value in metrics.items()
            if name not in ("step", "steps")
        }
        self._all("write", int(metrics["step"]), curves)

    def flush(self) -> None:
        """Called before a checkpoint: a run resumed from it writes no earlier step again."""
        self._all("flush")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._all("close", failed=error is not None)

    def _all(self, method: str, *args: Any, **kwargs: Any) -> None:
        for sink in list(self.sinks):
            try:
                getattr(sink, method)(*args, **kwargs)
            except Exception as error:  # a failed tracker must not stop the training
                self.sinks.remove(sink)
                _warn(f"no more metrics for {type(sink).__name__}", error)


class TensorBoard:
    """Event files, readable while they grow.

    Not tensorboardX's `SummaryWriter`: it writes in a thread, behind a queue of ten. When a full
    disk or a lost connection ends that thread, the next step waits forever.
    """

    def __init__(self, logs: str, start_step: int):
        if "://" in logs and not re.fullmatch(r"(s3|gs)://[^?]+", logs):
            raise ValueError("it can only write to folders, s3:// and gs://")
        directory_check(logs)
        self.events = EventsWriter(f"{logs.rstrip('/')}/events")
        # Hides the steps that a crashed process wrote after its last checkpoint: they are repeated.
        restart = SessionLog(status=SessionLog.START)
        self.events.write_event(
            # A run that begins anew also repeats step 0.
            Event(wall_time=time.time(), step=start_step and start_step + 1, session_log=restart)
        )
        self.flush()

    def write(self, step: int, metrics: Metrics) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        now = time.time()
        self.events.write_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
        if (
            now > self.flushed + FLUSH_INTERVAL_S
        ):  # in an object store, every flush uploads the whole file
            self.flush()

    def flush(self) -> None:
        self.events.flush()
        self.flushed = time.time()

    def close(self, *, failed: bool) -> None:
        self.events.close()


class RayGauges:
    """Ray's metrics: `ray_stillroom_training_loss{run="…"}` and so on.

    Beside a step's metrics: `progress`, from 0 to 1, and `resumed_after`, the step after which
    the run was resumed, 0 where it was not interrupted.
    """

    def __init__(self, name: str, steps: int, start_step: int):
        self.steps, self.gauges = steps, Gauges("stillroom_training", {"run": name})
        self.gauges.set("resumed_after", start_step)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in {"step": step, "progress": step / self.steps, **metrics}.items():
            self.gauges.set(name, value)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.gauges.close()


class Mlflow:
    """A run of the experiment `stillroom`, at a server or in a `file:` or `sqlite:` URI."""

    def __init__(self, uri: str, name: str, logs: str):
        # Newer versions refuse a folder without this. A `file:` URI requests one.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        experiment = (
            known.experiment_id if known else self.client.create_experiment(MLFLOW_EXPERIMENT)
        )
        unfinished = self.client.search_runs(
            [experiment],
            f"attributes.run_name = '{name}' and attributes.status != 'FINISHED'",
            max_results=1,
        )
        self.last_step = 0  # already written: MLflow cannot overwrite a point
        if unfinished:
            self.run = unfinished[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            history = self.client.get_metric_history(self.run, "loss")
            self.last_step = max((point.step for point in history), default=0)
        else:
            self.run = self.client.create_run(experiment, run_name=name).info.run_id

    def write(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        if step > self.last_step:
            now = int(time.time() * 1000)
            points = [Metric(name, float(value), now, step) for name, value in metrics.items()]
            self.client.log_batch(self.run, metrics=points)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Wandb:
    """A run of a project: online, or with WANDB_MODE=offline in files to be synced later."""

    def __init__(self, project: str, name: str, logs: str):
        import wandb

        folder = None if "://" in logs else logs
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        self.run = wandb.init(
            project=project,
            id=name,
            name=name,
            resume="allow",
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, metrics: Metrics) -> None:
        if step >= self.run.step:  # W&B accepts steps in ascending order only
            self.run.log(dict(metrics), step=step)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _warn(what: str, error: BaseException) -> None:
    why = one_line(error, 200)
    log.warning("%s: %s. All metrics are in metrics.jsonl", what, why)
