"""Metrics of a run's steps, in metrics.jsonl, and which step's weights are kept.

Step 0 is the encoder before training. It has only a score, where there is evaluation.
"""

import json
from pathlib import Path

from stillroom.learning.batch_types import Metrics
from stillroom.learning.loop import SCORE_METRIC

METRICS_FILE = "metrics.jsonl"  # a line per step, after one of step 0 where it was evaluated
BEST_WEIGHTS_FILE = "best.safetensors"  # in a checkpoint: the weights of the best score so far


def read_history(folder: Path) -> list[Metrics]:
    """The metrics of every step, from a checkpoint or an encoder's folder."""
    with (folder / METRICS_FILE).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_history(history: list[Metrics], folder: Path) -> None:
    """Writes what `read_history` reads."""
    lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
    (folder / METRICS_FILE).write_text(lines, encoding="utf-8")


def kept_step(history: list[Metrics]) -> Metrics:
    """The metrics of the step whose weights are kept.

    That is the first step with the best score, or the last step where none was evaluated; {} of an
    empty history.
    """
    evaluated = [metrics for metrics in history if SCORE_METRIC in metrics]
    if evaluated:
        return max(evaluated, key=lambda metrics: metrics[SCORE_METRIC])
    return history[-1] if history else {}
