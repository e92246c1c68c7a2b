"""What `serve deploy`'s YAML files may say of an application."""

import json
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

from stillroom.errors import UserError
from stillroom.release.reader import Target
from stillroom.serving.http.limits import Limits
from stillroom.serving.http.openai import did_you_mean
from stillroom.serving.replica.engines import Engine
from stillroom.serving.routing.policies import parse_policy
from stillroom.serving.routing.shadow import ShadowOptions


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Autoscale(Section):
    """Replicas that follow the requests, as Ray Serve counts them."""

    min: NonNegativeInt = 1  # 0: none while no one asks; the first to ask is told to come back
    max: PositiveInt
    target_ongoing: PositiveFloat = 16  # requests for each replica, waiting ones too
    up_delay_s: NonNegativeFloat = 5  # how long there must be more
    down_delay_s: NonNegativeFloat = 120  # … or fewer
    look_back_s: PositiveFloat = 10  # the requests are averaged over so long

    @model_validator(mode="after")
    def _min_is_below_max(self) -> "Autoscale":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is over max ({self.max})")
        return self


class ModelOptions(Section):
    """How one of a release's encoders is run."""

    replicas: NonNegativeInt = 1  # 0: not served
    autoscale: Autoscale | None = None  # in place of `replicas`
    engine: Engine = "auto"  # what runs it: on a CPU the release's fastest export, else torch
    in_router: bool = False  # each router has a replica within it, and `replicas` says how many
    num_cpus: NonNegativeFloat = 1  # a replica; also the threads of a forward
    num_gpus: NonNegativeFloat = 0  # a replica, or a part of one; over 0, it encodes on the GPU
    resources: dict[str, PositiveFloat] = {}  # of a replica: a node's own, as `ray start` names
    node_labels: dict[str, str] = {}  # a replica's node must have them
    max_ongoing: PositiveInt = 64  # requests in one replica, which it batches
    max_queued: PositiveInt = 64  # requests that wait for a replica; more get 429


class ServeArgs(Section):
    """The `args` of an application in serve/*.yaml."""

    releases: tuple[str, ...]  # release/quickstart, or a folder; NAME=… gives another name
    root: str | None = None  # where artifacts live; default STILLROOM_ROOT, else runs/
    policy: str | dict[str, Any] = "auto"  # who answers to a release's bare name: see policies
    policies: dict[str, str | dict[str, Any]] = {}  # … of single names, in place of `policy`
    target_latency_s: PositiveFloat = 10  # who would wait longer gets 429
    routers: PositiveInt = 1  # processes that take requests, where no encoder is in them
    # Tokens in one forward, and padding; None: what is best, see replica.BATCH_TOKENS.
    max_batch_tokens: PositiveInt | None = None
    max_wait_ms: NonNegativeFloat = 2  # how long an idle replica waits to fill a forward
    timeout_s: PositiveFloat = 60  # a request unanswered by then gets 503
    limits: Limits = Limits()  # of one request
    keys_file: str | None = None  # API keys, beside those in STILLROOM_API_KEYS
    no_auth: bool = False  # without keys: let other machines call, too
    trust_remote_code: bool = False  # runs the Python that the models bring with them
    shadow: ShadowOptions | None = None  # compares the student's answers with the teacher's
    cors_origins: tuple[str, ...] = ()  # whose pages may read answers in a browser
    access_log: str | None = "-"  # a file on the router's machine, "-" its standard output
    playground: bool = True  # GET / : a page to try a release on
    teacher: ModelOptions = ModelOptions()
    student: ModelOptions = ModelOptions()

    @classmethod
    def read(cls, args: dict[str, Any]) -> "ServeArgs":
        """Check a YAML's args. Raises one UserError that names every fault."""
        try:
            # Through JSON: strict validation of Python values refuses YAML's lists for tuples.
            read = cls.model_validate_json(json.dumps(args))
        except (ValidationError, TypeError) as error:
            raise UserError("serve args", _faults(error), "Mend the application's args") from error
        for where, policy in read.given_policies().items():
            parse_policy(f"serve args: {where}", policy, "release")
        for name, option in read.encoders().items():
            if option.in_router and (fault := read.against_in_router(option)):
                where = f"serve args: {name}.in_router"
                raise UserError(where, fault, f"Change that, or leave out {name}.in_router")
        return read

    def encoders(self) -> dict[Target, ModelOptions]:
        return {"teacher": self.teacher, "student": self.student}

    def against_in_router(self, option: ModelOptions) -> str | None:
        """What the args say that a router with this encoder in it cannot be."""
        faults = {
            "the other encoder is in it, too": self.teacher.in_router and self.student.in_router,
            "it is for one release, and there are several": len(self.releases) > 1,
            "its `replicas` say how many routers there are, and `routers` does": self.routers > 1,
            "without a router (replicas or autoscale.min of 0) no one is heard": not (
                option.autoscale.min if option.autoscale else option.replicas
            ),
            "shadow asks the teacher, and a router is not asked": bool(
                self.teacher.in_router and self.shadow
            ),
        }
        return next((fault for fault, there in faults.items() if there), None)

    def given_policies(self) -> dict[str, str | dict[str, Any]]:
        """Place in the config → policy, of all that are not `auto`."""
        named = {f"policies.{name}": policy for name, policy in self.policies.items()}
        return {
            where: policy
            for where, policy in {"policy": self.policy, **named}.items()
            if policy != "auto"
        }


def _faults(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    faults = []
    for fault in error.errors(include_url=False):
        *section, key = map(str, fault["loc"])
        where = ".".join([*section, key])
        if fault["type"] == "extra_forbidden":
            fields = _section(section).model_fields
            faults.append(".".join([*section, did_you_mean(key, fields)]))
        else:
            faults.append(f"{where}: {fault['msg']}")
    return "; ".join(faults)


def _section(path: list[str]) -> type[BaseModel]:
    """The class of the args that a path of keys leads to."""
    found: type[BaseModel] = ServeArgs
    for key in path:
        annotation = found.model_fields[key].annotation
        found = next(
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    return found
