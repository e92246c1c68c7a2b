"""Training's figures as curves: TensorBoard, Ray's metrics, and MLflow or W&B where asked for."""

import importlib.util
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check

from stillroom.cluster.gauges import Gauges
from stillroom.config.scale import Tracking
from stillroom.errors import UserError
from stillroom.learning.loop import SCORE

log = logging.getLogger(__name__)

FLUSH_S = 10  # seconds after which a curve that is looked at shows what there is

EXPERIMENT = "stillroom"  # MLflow's word for what holds runs

Figures = Mapping[str, float]


def progress(figures: Figures, seconds_left: float) -> str:
    """A step's figures in one line of a job's log."""
    step, steps = int(figures["step"]), int(figures["steps"])
    parts = [
        f"step {step}/{steps}",
        f"loss {figures['loss']:.4f}",
        f"norm {figures['gradient_norm']:.3g}",
        f"lr {figures['learning_rate']:.2e}",
        f"{figures['tokens_per_second']:,.0f} tokens/s",
        f"padding {figures['padding']:.0%}",
        f"{figures['memory_gib']:.1f} GiB",
    ]
    if "mfu" in figures:
        parts.append(f"MFU {figures['mfu']:.1%}")
    if SCORE in figures:
        parts.append(f"{SCORE} {figures[SCORE]:.4f}")
    if step < steps:
        parts.append(f"ETA {timedelta(seconds=math.ceil(seconds_left))}")
    return "  ".join(parts)


def check(tracking: Tracking) -> None:
    """Raises UserError where a package that the recipe wants is not installed."""
    for package, wanted in (("mlflow", tracking.mlflow), ("wandb", tracking.wandb)):
        if wanted is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"scale.tracking.{package}",
                f"the package {package} is not installed",
                "Run `pip install stillroom[tracking]`, or set it to null",
            )


class Sink(Protocol):
    """Takes the figures of steps, in order, each step once."""

    def write(self, step: int, figures: Figures) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def sinks(tracking: Tracking, name: str, logs: str, done: int) -> list[Sink]:
    """Where the recipe wants figures to go, ready to be written to.

    Args:
        name: of the run; one that goes on after a crash continues the curves of that name.
        logs: the folder, or `s3://` or `gs://` URI, of TensorBoard's files.
        done: steps whose figures were written before.

    Raises:
        UserError: when MLflow or Weights & Biases refuses the run.
    """
    found: list[Sink] = []
    if tracking.tensorboard:
        try:
            found.append(TensorBoard(logs, done))
        except Exception as fault:  # of boto3, of Google's client, of the file system
            _say(f"TensorBoard's files cannot be written to {logs}", fault)
    servers = (("mlflow", tracking.mlflow, Mlflow), ("wandb", tracking.wandb, Wandb))
    for field, wanted, kind in servers:
        if wanted is not None:
            try:
                found.append(kind(wanted, name, logs))
            except Exception as fault:  # each has errors of its own
                raise UserError(
                    f"scale.tracking.{field}={wanted}",
                    f"cannot be written to: {' '.join(str(fault).split())[:300].rstrip('.')}",
                    "Correct it, log in or start its server, or set it to null",
                ) from fault
    return found


class Tracker:
    """Every step's figures into every sink. A sink that fails later is left out, not the run."""

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = list(sinks)

    def __call__(self, figures: Figures) -> None:
        # "@" is no letter of a metric's name in MLflow or TensorBoard.
        curves = {
            name.replace("@", "_at_"): value
            for name, value in figures.items()
            if name not in ("step", "steps")
        }
        self._all("write", int(figures["step"]), curves)

    def flush(self) -> None:
        """Called before a checkpoint: a run that goes on from it rewrites no earlier step."""
        self._all("flush")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._all("close", failed=fault is not None)

    def _all(self, method: str, *args: Any, **named: Any) -> None:
        for sink in list(self.sinks):
            try:
                getattr(sink, method)(*args, **named)
            except Exception as fault:  # an hour's training is worth more than its curve
                self.sinks.remove(sink)
                _say(f"no more figures for {type(sink).__name__}", fault)


class TensorBoard:
    """Event files, readable while they grow.

    tensorboardX's `SummaryWriter` writes from a thread behind a queue of ten: where that thread
    dies of a full disk or a lost connection, the next step would wait for it for ever.
    """

    def __init__(self, logs: str, done: int):
        if "://" in logs and not re.fullmatch(r"(s3|gs)://[^?]+", logs):
            raise ValueError("it writes to folders, s3:// and gs:// alone")
        directory_check(logs)
        self.events = EventsWriter(f"{logs.rstrip('/')}/events")
        # Whatever a crashed try drew beyond its checkpoint is hidden, and drawn again.
        again = SessionLog(status=SessionLog.START)
        self.events.write_event(Event(wall_time=time.time(), step=done + 1, session_log=again))
        self.flush()

    def write(self, step: int, figures: Figures) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        now = time.time()
        self.events.write_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
        if now > self.flushed + FLUSH_S:  # of an object store, it uploads everything again
            self.flush()

    def flush(self) -> None:
        self.events.flush()
        self.flushed = time.time()

    def close(self, *, failed: bool) -> None:
        self.events.close()


class RayGauges:
    """Ray's metrics, which a cluster's Prometheus reads and its dashboard's Grafana draws:
    `ray_stillroom_training_loss{run="…"}` and so on; how much of the run is done, and after which
    step it was taken up, 0 where it was not interrupted."""

    def __init__(self, name: str, steps: int, done: int):
        self.steps, self.gauges = steps, Gauges("stillroom_training", {"run": name})
        self.gauges.set("resumed_after", done)

    def write(self, step: int, figures: Figures) -> None:
        for name, value in {"step": step, "done": step / self.steps, **figures}.items():
            self.gauges.set(name, value)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.gauges.close()


class Mlflow:
    """A run of the experiment `stillroom`, at a server, a `file:` or an `sqlite:` URI."""

    def __init__(self, uri: str, name: str, logs: str):
        # Newer versions refuse a folder unless told that it is meant, as a `file:` URI tells us.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT)
        unfinished = self.client.search_runs(
            [experiment],
            f"attributes.run_name = '{name}' and attributes.status != 'FINISHED'",
            max_results=1,
        )
        self.drawn = 0  # steps; a point once written cannot be taken back
        if unfinished:
            self.run = unfinished[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            history = self.client.get_metric_history(self.run, "loss")
            self.drawn = max((point.step for point in history), default=0)
        else:
            self.run = self.client.create_run(experiment, run_name=name).info.run_id

    def write(self, step: int, figures: Figures) -> None:
        from mlflow.entities import Metric

        if step > self.drawn:
            now = int(time.time() * 1000)
            points = [Metric(name, float(value), now, step) for name, value in figures.items()]
            self.client.log_batch(self.run, metrics=points)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Wandb:
    """A run of a project, online or, with WANDB_MODE=offline, in files to be synced later."""

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

    def write(self, step: int, figures: Figures) -> None:
        if step >= self.run.step:  # it takes no step back
            self.run.log(dict(figures), step=step)

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _say(what: str, fault: BaseException) -> None:
    """A line in the job's log."""
    why = " ".join(str(fault).split())[:200]
    log.warning("%s: %s; every figure is in metrics.jsonl", what, why)
