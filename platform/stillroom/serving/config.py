"""The keys of an application's `args` in the YAML files of `serve deploy`."""

import json
import re
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from stillroom.encoders.contract import Pooling
from stillroom.errors import UserError
from stillroom.release.reader import Target
from stillroom.serving.errors import unknown_field_message
from stillroom.serving.replica.engine_choice import Engine
from stillroom.serving.routing.rules import parse_policy
from stillroom.serving.routing.shadow import ShadowOptions

# As hub ids and names of artifacts are written.
MODEL_NAME = re.compile(r"[\w.][\w.:/-]*")


class Section(BaseModel):
    """A mapping in the YAML: unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AutoscaleOptions(Section):
    """How many replicas run, by the number of requests as Ray Serve counts them."""

    min_replicas: NonNegativeInt = 1  # 0: none while idle; the first caller is asked to retry
    max_replicas: PositiveInt
    target_ongoing_requests: PositiveFloat = 16  # requests per replica, waiting ones included
    upscale_delay_s: NonNegativeFloat = 5  # of higher load, before a replica is added
    downscale_delay_s: NonNegativeFloat = 120  # of lower load, before one is removed
    look_back_period_s: PositiveFloat = 10  # requests are averaged over this time

    @model_validator(mode="after")
    def _min_is_at_most_max(self) -> "AutoscaleOptions":
        low, high = self.min_replicas, self.max_replicas
        if low > high:
            raise ValueError(f"min_replicas ({low}) is over max_replicas ({high})")
        return self


class EncoderOptions(Section):
    """How one of a release's encoders runs."""

    replicas: NonNegativeInt = 1  # 0: not served
    autoscale: AutoscaleOptions | None = None  # instead of `replicas`
    engine: Engine = "auto"  # on a CPU the release's fastest float export, else torch
    in_router: bool = False  # in each router's process; then `replicas` is the number of routers
    num_cpus: NonNegativeFloat = 1  # of a replica; also the threads of a forward
    num_gpus: NonNegativeFloat = 0  # of a replica, or a fraction; over 0: encode on the GPU
    resources: dict[str, PositiveFloat] = {}  # custom resources, as `ray start` names them
    node_labels: dict[str, str] = {}  # that a replica's node must have
    max_ongoing_requests: PositiveInt = 64  # requests in one replica, which batches them
    max_queued_requests: PositiveInt = 64  # requests that wait for a replica; more get HTTP 429

    @property
    def max_replicas(self) -> int:
        """The most replicas that may run; 0: not served."""
        return self.autoscale.max_replicas if self.autoscale else self.replicas

    @property
    def min_replicas(self) -> int:
        """The fewest replicas that run."""
        return self.autoscale.min_replicas if self.autoscale else self.replicas

    @property
    def capacity(self) -> int:
        """Requests that all replicas can take and queue."""
        return self.max_replicas * self.max_ongoing_requests + self.max_queued_requests


class ModelOptions(EncoderOptions):
    """A model that is served as it stands, and how it runs."""

    model: str  # a folder, a hub id, `package:…`, an artifact such as student/quickstart, an export
    pooling: Pooling | None = None  # of a plain model, which does not say it itself


class RequestLimits(Section):
    """The most that one request may hold. All but `tokens` are checked before a replica sees it."""

    body_bytes: PositiveInt = 16 * 2**20  # as sent, and unpacked
    body_seconds: PositiveFloat = 30  # from the headers to the last byte; more gets HTTP 408
    texts: PositiveInt = 2048  # OpenAI's own limit
    characters: PositiveInt = 4 * 2**20  # of all texts together
    tokens: PositiveInt = 300_000  # of all texts together, each cut to what its model takes


class ServeArgs(Section):
    """The `args` of an application in serve/*.yaml."""

    releases: tuple[str, ...] = ()  # release/quickstart, or a folder; NAME=… gives another name
    models: dict[str, ModelOptions] = {}  # name in requests → a model without a release
    root: str | None = None  # where artifacts live; default STILLROOM_ROOT, else runs/
    policy: str | dict[str, Any] = "auto"  # who answers to a bare release name; see policies
    policies: dict[str, str | dict[str, Any]] = {}  # … for single releases, instead of `policy`
    target_latency_s: PositiveFloat = 10  # requests expected to wait longer get HTTP 429
    routers: PositiveInt = 1  # processes that take requests, where no encoder is in_router
    router_node_labels: dict[
        str, str
    ] = {}  # that their nodes must have: a node takes requests along
    # Tokens in one forward, padding included; None: see replica.DEFAULT_BATCH_TOKENS.
    max_batch_tokens: PositiveInt | None = None
    batch_wait_ms: NonNegativeFloat = 2  # how long an idle replica waits to fill a forward
    timeout_s: PositiveFloat = 60  # a request without an answer by then gets HTTP 503
    limits: RequestLimits = RequestLimits()
    keys_file: str | None = None  # API keys, in addition to those in STILLROOM_API_KEYS
    no_auth: bool = False  # without keys: let other machines call, too
    trust_remote_code: bool = False  # run the Python code that models bring with them
    shadow: ShadowOptions | None = None  # compare the student's answers with the teacher's
    cors_origins: tuple[str, ...] = ()  # origins whose pages may read answers in a browser
    access_log: str | None = "-"  # a file on the router's machine, "-" its standard output
    playground: bool = True  # GET / : a page to try a release on
    teacher: EncoderOptions = EncoderOptions()
    student: EncoderOptions = EncoderOptions()

    @classmethod
    def read(cls, args: dict[str, Any]) -> "ServeArgs":
        """Check a YAML's args. Raises one UserError that names every faulty key."""
        try:
            # Through JSON: strict validation of Python values refuses YAML's lists for tuples.
            checked = cls.model_validate_json(json.dumps(args))
        except (ValidationError, TypeError) as error:
            raise UserError(
                "serve args", _describe_errors(error), "Correct the application's args"
            ) from error
        for where, policy in checked.explicit_policies().items():
            parse_policy(f"serve args: {where}", policy, "release")
        checked._check_what_is_served()
        for name, options in checked.sections().items():
            if options.in_router and (conflict := checked.in_router_conflict(options)):
                where = f"serve args: {name}.in_router"
                raise UserError(where, conflict, f"Change that, or remove {name}.in_router")
        return checked

    def sections(self) -> dict[str, EncoderOptions]:
        """Key in the YAML → options, of every kind of encoder."""
        models = {f"models.{name}": options for name, options in self.models.items()}
        return {"teacher": self.teacher, "student": self.student, **models}

    def section(self, release: str, target: Target) -> str:
        """The key in `sections` of an encoder of a release or of a model."""
        return f"models.{release}" if target == "model" else target

    def _check_what_is_served(self) -> None:
        """Raises UserError when nothing is served, and for options of releases without any."""
        if not self.releases and not self.models:
            raise UserError(
                "serve args: releases", "is empty", "Name at least one release or model"
            )
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise UserError(
                    f"serve args: models.{name}",
                    "cannot be a model's name in requests",
                    "Use letters, digits and - . _ / :",
                )
        of_releases = {"teacher", "student", "policy", "policies", "shadow"}
        if not self.releases and (unused := of_releases & self.model_fields_set):
            raise UserError(
                f"serve args: {min(unused)}",
                "is for releases, and only models are served",
                "Remove it, or make a release of the models with `stillroom release create`",
            )

    def in_router_conflict(self, options: EncoderOptions) -> str | None:
        """Why an encoder with these options cannot run in the router; None if it can."""
        if sum(section.in_router for section in self.sections().values()) > 1:
            return "another encoder is in the router too"
        if len(self.releases) > 1 and not isinstance(options, ModelOptions):
            return "it works for one release, and there are several"
        if self.routers > 1:
            return "its `replicas` set the number of routers, and so does `routers`"
        if self.router_node_labels:
            return "its `node_labels` are the routers', and so are `router_node_labels`"
        if options.min_replicas == 0:
            return "no router would run (replicas or autoscale.min_replicas is 0)"
        if self.teacher.in_router and self.shadow:
            return "shadow needs teacher replicas of its own"
        return None

    def explicit_policies(self) -> dict[str, str | dict[str, Any]]:
        """Key in the YAML → policy, of all that are not `auto`."""
        named = {f"policies.{name}": policy for name, policy in self.policies.items()}
        return {
            where: policy
            for where, policy in {"policy": self.policy, **named}.items()
            if policy != "auto"
        }


def _describe_errors(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    messages = []
    for item in error.errors(include_url=False):
        *sections, key = map(str, item["loc"])
        where = ".".join([*sections, key])
        if item["type"] == "extra_forbidden":
            fields = _section_class(sections).model_fields
            messages.append(".".join([*sections, unknown_field_message(key, fields)]))
        else:
            messages.append(f"{where}: {item['msg']}")
    return "; ".join(messages)


def _section_class(path: list[str]) -> type[BaseModel]:
    """The class of the section that a path of keys leads to."""
    section: type[BaseModel] = ServeArgs
    if path[:1] == ["models"]:
        path = [path[0], *path[2:]]  # the model's name is not a field
    for key in path:
        annotation = section.model_fields[key].annotation
        section = next(
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return section
