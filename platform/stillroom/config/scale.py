"""`scale`: resources and parallelism of a recipe. Never part of an artifact's key."""

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


class ElasticWorkers(Section):
    """As many workers as the cluster has room for.

    Neither the batches nor their order depend on the number. Workers beyond an even share of the
    batches wait.

    Attributes:
        poll_interval_s: how often to look for room for more workers; a lost worker is noticed at
            once.
    """

    min: PositiveInt = 1
    max: PositiveInt
    poll_interval_s: PositiveFloat = 60.0

    @model_validator(mode="after")
    def _in_order(self) -> "ElasticWorkers":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class TrainingWorkers(Section):
    """Processes that train one model together.

    Attributes:
        cpus: of each worker.
        gpus: of each worker.
        gpu_type: such as H100-80G; `check` then estimates whether the run fits its memory.
        node_labels: only nodes with these, such as ray.io/market-type: spot.
        peak_flops: bfloat16 FLOP/s of a worker's device, if its name does not imply them; MFU is a
            fraction of it.
        offload: to the worker's main memory.
        micro_batch_tokens: the most tokens of one forward pass, padding included.
        gradcache: bounds memory by micro_batch_tokens, at the cost of a second forward pass.
        packed: without any padding; null: on a CPU, if the architecture allows it.
        checkpoint_every: steps. A crash loses at most this many, plus those made while a checkpoint
            is copied to the root.
        keep_checkpoints: the newest; older ones are deleted.
        max_failures: restarts; nodes that are removed with notice do not count.
    """

    workers: PositiveInt | ElasticWorkers = 1
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    gpu_type: str | None = None
    node_labels: dict[str, str] = Field(default_factory=dict)
    peak_flops: PositiveFloat | None = None
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    micro_batch_tokens: PositiveInt = 16384
    gradcache: bool = False
    gradient_checkpointing: bool = False
    packed: bool | None = None
    checkpoint_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2
    max_failures: NonNegativeInt = 2

    @property
    def max_workers(self) -> int:
        """The most workers that there can be."""
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else self.workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that training starts with."""
        return self.workers.min if isinstance(self.workers, ElasticWorkers) else self.workers

    @model_validator(mode="after")
    def _zero_needs_deepspeed(self) -> "TrainingWorkers":
        if self.zero_stage and self.engine == "torch":
            raise ValueError("zero_stage needs engine: deepspeed")
        if self.offload == "optimizer" and self.zero_stage < 1:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage < 3:
            raise ValueError("offload: parameters needs zero_stage 3")
        return self


class ActorPool(Section):
    """Equal processes that share a stage's work; cpus and gpus are of each one."""

    actors: PositiveInt = 1
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    node_labels: dict[str, str] = Field(default_factory=dict)  # only nodes with these


class EmbeddingActors(ActorPool):
    """Processes that embed the corpus.

    Attributes:
        on_error: for a text that the teacher cannot embed, or whose vector is not finite: `fail`
            ends the run, `skip` leaves the text out of all later stages and lists it in the
            manifest.
    """

    on_error: Literal["fail", "skip"] = "fail"


class ApiCalls(Section):
    """How to call an API in OpenAI's format.

    Attributes:
        api_key_env: the environment variable that holds the key; null sends none.
        max_concurrency: open requests, of each actor where there are several.
        attempts: of each request, before the run gives up.
        timeout_s: of one attempt.
    """

    api_key_env: str | None = None
    max_concurrency: PositiveInt = 8
    attempts: PositiveInt = 8
    timeout_s: PositiveFloat = 120.0


class LanguageModelEndpoint(ApiCalls):
    """Where the language model of corpus.synthetic is served.

    Attributes:
        base_url: such as https://api.openai.com/v1.
    """

    base_url: str | None = None
    actors: PositiveInt = 1


class TeacherApi(ApiCalls):
    """How to call teacher.api.

    The budget is for the texts of one artifact, including those whose vectors are cached. The run
    ends when it does not suffice.
    """

    texts_per_request: PositiveInt = 64
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    budget: Budget = Budget()


class SearchActors(ActorPool):
    """Processes that search for negatives.

    Attributes:
        memory_gib: working memory of each, in addition to an index.
    """

    memory_gib: PositiveFloat = 1.0


class Tracking(Section):
    """Destinations of training metrics besides metrics.jsonl."""

    tensorboard: bool = True
    mlflow: str | None = None  # tracking URI
    wandb: str | None = None  # project


class Scale(Section):
    """Resources, parallelism and tracking of every stage; never affects results.

    Attributes:
        report: models are measured one after another, each by one actor.
    """

    synthetic: LanguageModelEndpoint = LanguageModelEndpoint()
    teacher: TrainingWorkers = TrainingWorkers(engine="deepspeed")
    teacher_api: TeacherApi = TeacherApi()
    student: TrainingWorkers = TrainingWorkers()
    vectors: EmbeddingActors = EmbeddingActors()
    negatives: SearchActors = SearchActors()
    report: ActorPool = ActorPool()
    tracking: Tracking = Tracking()
