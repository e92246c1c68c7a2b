"""TODO docstring: training/task.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.config.phases import Optimisation
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.encoder import Encoder
from stillroom.learning.objectives.contrastive import Objective

METRICS = "metrics.jsonl"  # one line a step

BEST = "best.safetensors"  # in a checkpoint: the weights of the best score so far


@dataclass(frozen=True)
class Task:
    """What is trained, on what, towards what. Travels to the workers by pickle.

    Attributes:
        encoder, batches: functions, so that each worker reads its own copy from storage; the
            latter is given the encoder, and the worker's rank and world.
        merges: the result is saved whole, for its adapter lies on weights that no base holds.
        evaluate_every: steps after which nDCG@10 on `sets` is measured, and after the last; the
            best weights are then kept. None: never, and the last are.
        prepare: called with the encoder, where it will be trained, before the first step of all.
    """

    encoder: Callable[[], Encoder]
    batches: Callable[[Encoder, dict[str, int]], Any]
    objective: Objective
    settings: Optimisation
    seed: int
    merges: bool = False
    sets: Callable[[], Mapping[str, EvaluationSet]] = dict
    evaluate_every: int | None = None
    prepare: Callable[[Encoder], None] | None = None
