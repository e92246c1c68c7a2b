"""Output of one worker in a run: metrics, checkpoints and, at the end, the encoder."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.save import merge_adapters, save_encoder
from stillroom.learning.batch_types import Metrics
from stillroom.learning.engine.interface import Engine
from stillroom.learning.loop import SCORE_METRIC
from stillroom.training.checkpoints import CheckpointSaver
from stillroom.training.history import BEST_WEIGHTS_FILE, kept_step, read_history, write_history
from stillroom.training.metric_sinks import Tracker, progress_line
from stillroom.training.task import TrainingTask

log = logging.getLogger(__name__)
LOG_LINES = 20  # progress lines of a run, about


@dataclass
class RunOutput:
    """Callbacks of the training loop, on every worker.

    Attributes:
        scratch: a folder on this machine for the best weights so far.
        history: the metrics of every step, from the run's first, after those of step 0 where it
            was evaluated.
        start_step: steps that were done when this process resumed the run.
    """

    task: TrainingTask
    encoder: Encoder
    engine: Engine
    rank: int
    saver: CheckpointSaver
    scratch: Path
    tracker: Tracker = field(default_factory=lambda: Tracker([]))
    history: list[Metrics] = field(default_factory=list)
    start_step: int = 0
    started_at: float = field(default_factory=time.monotonic)

    @property
    def best_weights(self) -> Path:
        """The first worker's copy of the best weights so far, where there is evaluation."""
        return self.scratch / BEST_WEIGHTS_FILE

    @property
    def best_score(self) -> float:
        """The best score so far; -inf before the first evaluation."""
        return kept_step(self.history).get(SCORE_METRIC, -math.inf)

    def resume(self, checkpoint: Path) -> None:
        """Resumes the run of a checkpoint."""
        self.start_step = self.engine.load(checkpoint)
        self.history = [row for row in read_history(checkpoint) if row["step"] <= self.start_step]
        if self.rank == 0 and (checkpoint / BEST_WEIGHTS_FILE).exists():
            shutil.copy2(checkpoint / BEST_WEIGHTS_FILE, self.best_weights)

    @property
    def steps_done(self) -> int:
        """Steps of the run, those before a resumption included."""
        return int(self.history[-1]["step"]) if self.history else 0

    def report_start(self, metrics: Metrics) -> None:
        """Keeps and tracks the score of step 0, before training."""
        self.history.append(metrics)
        self.tracker(metrics)
        if self.rank == 0:
            log.info("step 0, before training: %s %.4f", SCORE_METRIC, metrics[SCORE_METRIC])

    def report_step(self, metrics: Metrics) -> None:
        """Keeps a step's metrics, tracks them, and logs some."""
        self.history.append(metrics)
        self.tracker(metrics)
        step, steps = int(metrics["step"]), int(metrics["steps"])
        logged = step in (1, steps) or step % math.ceil(steps / LOG_LINES) == 0
        if self.rank == 0 and (logged or SCORE_METRIC in metrics):
            seconds_per_step = (time.monotonic() - self.started_at) / (step - self.start_step)
            log.info(progress_line(metrics, seconds_per_step * (steps - step)))

    def keep_best(self) -> None:
        """Keeps the current weights: their score is the best so far. Called on every worker."""
        weights = self.engine.trained_weights()
        if self.rank == 0:
            save_file({n: tensor.contiguous() for n, tensor in weights.items()}, self.best_weights)

    def save_checkpoint(self, step: int) -> None:
        """Saves a checkpoint to resume from. Called on every worker."""

        def write(folder: Path) -> None:
            self.engine.save(folder, step)
            if self.best_weights.exists():
                shutil.copy2(self.best_weights, folder)

        self._save(step, write)

    def save_encoder(self) -> None:
        """Saves the trained encoder, as the last checkpoint. Called on every worker."""
        kept = kept_step(self.history)
        evaluated = SCORE_METRIC in kept
        last_weights = {} if evaluated else self.engine.trained_weights()

        def write(folder: Path) -> None:
            if self.rank != 0:
                return
            weights = last_weights
            if evaluated:
                weights = load_file(self.best_weights)
                _log_kept(kept)
            if self.task.saves_merged:
                save_encoder(merge_adapters(self.task.make_encoder(), weights), folder)
            else:
                save_encoder(self.encoder, folder, state_dict=weights)

        self._save(self.steps_done, write)

    def _save(self, step: int, write: Callable[[Path], None]) -> None:
        def write_all(folder: Path) -> None:
            write(folder)
            if self.rank == 0:
                write_history(self.history, folder)
                self.tracker.flush()

        self.saver.save(step, write_all)


def _log_kept(kept: Metrics) -> None:
    if kept["step"] == 0:
        log.warning(
            "training has not improved on its start: keeps the weights of step 0, %s %.4f. Try a "
            "lower learning rate, other losses, or more and other texts",
            SCORE_METRIC, kept[SCORE_METRIC],
        )  # fmt: skip
        return
    log.info(
        "keeps the weights of step %s: %s %.4f", kept["step"], SCORE_METRIC, kept[SCORE_METRIC]
    )
