"""Where a recipe is made and how much of it at once: never part of a key."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Section
from stillroom.config.synthetic import Budget


class Elastic(Section):
    """As many workers as the cluster has room for. Neither batches nor their order depend on it; a
    worker for whom a batch has no even share waits."""

    min: PositiveInt = 1
    max: PositiveInt
    look_every_s: PositiveFloat = 60.0  # for room to grow; who is lost is noticed at once

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class Workers(Section):
    workers: PositiveInt | Elastic = 1
    cpus: PositiveFloat = 1.0  # each
    gpus: NonNegativeFloat = 0.0  # each
    gpu: str | None = None  # its kind, such as H100-80G: `check` says whether the run fits
    node_labels: dict[str, str] = Field(default_factory=dict)  # such as ray.io/market-type: spot
    # FLOP/s in bfloat16 of a worker's device, where its name does not tell: MFU is a share of it.
    peak_flops: PositiveFloat | None = None
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"  # to the worker's main memory
    micro_tokens: PositiveInt = 16384  # the most tokens, padding counted, of one forward
    gradcache: bool = False  # bounds memory by micro_tokens, for a second forward
    gradient_checkpointing: bool = False
    packed: bool | None = None  # no padding at all; null: on a CPU, if the architecture can be
    # Steps: the most that a crash can cost, beside those made while one is brought to the root.
    checkpoint_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2  # the newest; older ones are deleted
    max_failures: NonNegativeInt = 2  # nodes that are taken away with notice not counted

    @property
    def most(self) -> int:
        return self.workers.max if isinstance(self.workers, Elastic) else self.workers

    @property
    def fewest(self) -> int:
        return self.workers.min if isinstance(self.workers, Elastic) else self.workers

    @model_validator(mode="after")
    def _zero_is_deepspeed(self) -> "Workers":
        if self.zero_stage and self.engine == "torch":
            raise ValueError("zero_stage needs engine: deepspeed")
        if self.offload == "optimizer" and self.zero_stage < 1:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage < 3:
            raise ValueError("offload: parameters needs zero_stage 3")
        return self


class Actors(Section):
    actors: PositiveInt = 1
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    node_labels: dict[str, str] = Field(default_factory=dict)  # only nodes with these


class Embedders(Actors):
    # A text that fails the teacher, or whose vector is not finite: ends the run, or is left out of
    # all that follows and listed in the manifest.
    on_error: Literal["raise", "skip"] = "raise"


class Calls(Section):
    """How something of OpenAI's schema is asked."""

    key_variable: str | None = None  # the environment's, that holds the key; null: none is sent
    at_once: PositiveInt = 8  # requests; of each actor, where there are several
    attempts: PositiveInt = 8  # of each request, before the run gives up
    timeout_s: PositiveFloat = 120.0  # of an attempt


class Endpoint(Calls):
    """Where the language model of corpus.synthetic is served, as OpenAI's API is."""

    base_url: str | None = None  # such as https://api.openai.com/v1
    actors: PositiveInt = 1


class TeacherApi(Calls):
    """How teacher.api is asked. Its budget is for the texts of one artifact, those whose vectors
    are kept from before counted too; where it does not suffice, the run ends."""

    texts: PositiveInt = 64  # the most of a request
    requests_a_minute: PositiveFloat | None = None
    tokens_a_minute: PositiveFloat | None = None
    budget: Budget = Budget()


class Searchers(Actors):
    memory_gib: PositiveFloat = 1.0  # what each works in, beside the index where there is one


class Tracking(Section):
    """Where training's figures go beside metrics.jsonl."""

    tensorboard: bool = True
    mlflow: str | None = None  # tracking URI
    wandb: str | None = None  # project


class Scale(Section):
    """Time, place and what is shown, never results; not part of a key."""

    synthetic: Endpoint = Endpoint()
    teacher: Workers = Workers(engine="deepspeed")
    teacher_api: TeacherApi = TeacherApi()
    student: Workers = Workers()
    vectors: Embedders = Embedders()
    negatives: Searchers = Searchers()
    report: Actors = Actors()  # one model after another, each by one actor
    tracking: Tracking = Tracking()
