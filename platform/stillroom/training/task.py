"""A training task: what a stage passes to the training driver."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.config.phases import TrainingPhase
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.encoder import Encoder
from stillroom.learning.objectives.interface import Objective
from stillroom.learning.order import WorkerShard


@dataclass(frozen=True)
class TrainingTask:
    """An encoder, its batches and its objective. Pickled to the workers.

    Attributes:
        make_encoder, make_batches: functions, so that each worker reads its own copy from storage.
        phase: the recipe's numbers: steps, batch size, learning rate.
        saves_merged: whether adapters are merged into the saved weights, since they were trained
            on weights that no base model has.
        evaluation_sets: loads the sets that `evaluate_every` measures.
        evaluate_every: steps between measurements of nDCG@10, with one before the first step and
            one after the last; the best weights are kept, those of step 0 if no later ones are
            better. None: no measurement, and the last weights are kept.
    """

    make_encoder: Callable[[], Encoder]
    make_batches: Callable[[Encoder, WorkerShard], Any]
    objective: Objective
    phase: TrainingPhase
    seed: int
    saves_merged: bool = False
    evaluation_sets: Callable[[], Mapping[str, EvaluationSet]] = dict
    evaluate_every: int | None = None

    @property
    def shared_batch_sizes(self) -> tuple[int, ...]:
        """Sizes of the batches that the workers divide among them."""
        return tuple(self.phase.batch_sizes.values())
