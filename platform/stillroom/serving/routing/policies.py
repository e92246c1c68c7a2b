"""Which encoder answers a request: a policy, features and load in, a decision out. Pure.

Requests for one name may go to several encoders only if one index can hold their vectors: the same
space, the same normalisation and a common vector size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stillroom.encoders.contract import BaseContract, index_conflict
from stillroom.errors import UserError
from stillroom.serving.errors import RESTART_RETRY_S, ErrorKind
from stillroom.serving.routing.rules import Loads, RequestFeatures, Rule

Contracts = Mapping[str, BaseContract]  # encoder (NAME/teacher or NAME/student) → its contract


@dataclass(frozen=True)
class Send:
    """The decision to let an encoder answer.

    Attributes:
        model: the encoder, NAME/teacher or NAME/student.
        dims: size of the vectors to return.
        reason: why this encoder; a label of metrics.
        wake: the preferred encoder, which has no running replica and must be started.
    """

    model: str
    dims: int
    reason: str
    wake: str | None = None


@dataclass(frozen=True)
class Refuse:
    """The decision not to answer; see ServingError for the fields, and Send for `wake`."""

    kind: ErrorKind
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    wake: str | None = None


@dataclass(frozen=True)
class Policy:
    """A rule, and settings that are independent of the encoder that the rule picks.

    Attributes:
        max_wait_s: requests expected to wait longer are refused.
        scaled_to_zero: encoders that have no replica while nobody sends requests.
        fallbacks: encoder → the one that answers while it has no replica, or after its replicas
            died. Without a fallback, requests wait for an encoder that should have replicas.
    """

    rule: Rule
    max_wait_s: float = math.inf
    scaled_to_zero: frozenset[str] = frozenset()
    fallbacks: Mapping[str, str] = field(default_factory=dict)

    def is_asleep(self, model: str, loads: Loads) -> bool:
        """Whether an encoder is scaled down to no replica at all."""
        return model in self.scaled_to_zero and not loads[model].ready


def choose_encoder(
    policy: Policy, request: RequestFeatures, loads: Loads, contracts: Contracts
) -> Send | Refuse:
    """Decide which encoder answers a request, under a policy that passed `check_policy`."""
    sizes = common_dims(policy.rule, contracts)
    if request.dimensions is not None and request.dimensions not in sizes:
        message = f"dimensions must be one of {', '.join(map(str, sizes))} for this model"
        return Refuse(ErrorKind.INVALID, message, "dimensions")
    dims = request.dimensions or sizes[0]
    model, reason = policy.rule.pick(request, loads)
    asleep = policy.is_asleep(model, loads)
    wake = model if asleep else None
    if fallback := running_fallback(policy, model, dims, loads, contracts):
        model, reason = fallback, not_running_reason(model)
    elif asleep:
        message = "the model is starting; try again later"
        return Refuse(ErrorKind.UNAVAILABLE, message, retry_after_s=RESTART_RETRY_S, wake=wake)
    if (wait_s := loads[model].wait_s) > policy.max_wait_s:
        message = "the model is overloaded; try again later"
        retry_after_s = math.ceil(wait_s - policy.max_wait_s)
        return Refuse(ErrorKind.OVERLOADED, message, retry_after_s=retry_after_s)
    return Send(model, dims, reason, wake)


def running_fallback(
    policy: Policy, model: str, dims: int, loads: Loads, contracts: Contracts
) -> str | None:
    """The encoder that answers for one without running replicas.

    None where `model` runs, or its fallback does not run or lacks vectors of size `dims`.
    """

    def is_down(encoder: str) -> bool:
        # A router that has just started knows of no replicas yet: this does not mean that they
        # died.
        return policy.is_asleep(encoder, loads) or loads[encoder].lost

    fallback = policy.fallbacks.get(model)
    if fallback is None or not is_down(model) or is_down(fallback):
        return None
    return fallback if dims in contracts[fallback].dims else None


def not_running_reason(model: str) -> str:
    """The reason for sending a request to `model`'s fallback."""
    return f"{model} is not running"


def common_dims(rule: Rule, contracts: Contracts) -> tuple[int, ...]:
    """Vector sizes that every encoder behind a rule has, largest first.

    A student may share only a Matryoshka prefix of its teacher's space. Of a name with several
    encoders, only the common sizes let documents and queries fit into one index.
    """
    common = set.intersection(*(set(contracts[model].dims) for model in rule.encoders()))
    return tuple(sorted(common, reverse=True))


def auto_policy(teacher: BaseContract | None, student: BaseContract | None) -> str:
    """The meaning of the policy `auto`: asymmetric where one index can hold both encoders'
    vectors, else the student."""
    if student is None:
        return "teacher"
    if teacher is None:
        return "student"
    return "student" if index_conflict(teacher, student) else "asymmetric"


def find_fallbacks(rule: Rule, contracts: Contracts) -> dict[str, str]:
    """For each encoder of a rule, another that may answer for it, if any.

    Candidates are the rule's other encoders, then the other encoder of the same release.
    """
    fallbacks = {}
    for model in rule.encoders():
        release, _, target = model.rpartition("/")
        sibling = f"{release}/{'student' if target == 'teacher' else 'teacher'}"
        for other in [*rule.encoders(), sibling]:
            if other == model or other not in contracts:
                continue
            if not index_conflict(contracts[model], contracts[other]):
                fallbacks[model] = other
                break
    return fallbacks


def check_policy(where: str, rule: Rule, contracts: Contracts) -> None:
    """Raise UserError if a rule needs an encoder that is not served, or would mix spaces."""
    first, *others = models = rule.encoders()
    for model in models:
        if model not in contracts:
            raise UserError(
                where,
                f"policy {rule.name!r} needs {model}, which is not served",
                "Name a release that contains it, with replicas for its "
                f"{model.rpartition('/')[2]}, or choose another policy",
            )
    fix = "Serve each under a name of its own, or distil the student from its teacher's vectors"
    for other in others:
        if conflict := index_conflict(contracts[first], contracts[other]):
            raise UserError(
                where,
                f"policy {rule.name!r} would put vectors of {first} and {other} into one index, "
                f"but {conflict}",
                fix,
            )
    if not common_dims(rule, contracts):
        raise UserError(where, f"{', '.join(models)} have no vector size in common", fix)
