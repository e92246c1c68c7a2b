"""Who answers a request: facts and load in, a decision out, no Ray.

A policy is a rule, and rules hold rules: `spill`, or
`{asymmetric: {passage: {spill: {limit: 64}}, query: student}}`. The innermost are encoders:
`teacher` and `student` of the name's own release, or `NAME/teacher` of another that is served.

One name's requests may reach several encoders only when their vectors can lie in one index: the
same space, one normalisation and a vector size that all can give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from stillroom.encoders.contract import Role, Terms, cannot_share_index
from stillroom.errors import UserError
from stillroom.release.reader import TARGETS
from stillroom.serving.messages import RESTART_AFTER_S, Load

CHARACTERS = 4  # that a token stands for, where only tokens are given


@dataclass(frozen=True)
class Facts:
    """What a policy may look at in a request."""

    role: Role
    dimensions: int | None = None  # asked for; None = the policy's largest
    longest: int = 0  # characters of its longest text
    draw: float = 0.0  # in [0, 1), uniform over texts, and always the same for the same text

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        token_ids: Sequence[Sequence[int]] | None,
        role: Role,
        dimensions: int | None,
    ) -> "Facts":
        """Of a request's n ≥ 1 texts, or of the token ids in their place."""
        first = str(list(token_ids[0])) if token_ids else texts[0]
        digest = blake2b(first.encode("utf-8", "surrogatepass"), digest_size=6).digest()
        return cls(
            role,
            dimensions,
            CHARACTERS * max(map(len, token_ids)) if token_ids else max(map(len, texts)),
            int.from_bytes(digest) / 2**48,
        )


@dataclass(frozen=True)
class Send:
    model: str  # an encoder: NAME/teacher or NAME/student
    dims: int  # size of the vectors to return
    why: str
    wake: str | None = None  # the encoder that was wanted, and of which no replica runs


@dataclass(frozen=True)
class Refuse:
    status: int
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    wake: str | None = None


class Rule(BaseModel):
    """One step of a policy. Its fields that are rules are given as such in YAML, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def name(self) -> str:
        return next(name for name, rule in RULES.items() if rule is type(self))

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        """The encoder to send a request to, and why."""
        raise NotImplementedError

    def encoders(self) -> list[str]:
        """All that it may pick, each once."""
        return list(dict.fromkeys(e for rule in self.rules().values() for e in rule.encoders()))

    def rules(self) -> dict[str, "Rule"]:
        return {key: rule for key, rule in self if isinstance(rule, Rule)}


class To(Rule):
    """Always one encoder."""

    model: str

    @property
    def name(self) -> str:
        return self.model.rpartition("/")[2]

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        return self.model, self.name

    def encoders(self) -> list[str]:
        return [self.model]


TEACHER, STUDENT = To(model="teacher"), To(model="student")


class Asymmetric(Rule):
    """Documents, which are encoded once, to the large; queries, which are awaited, to the small."""

    passage: Rule = TEACHER
    query: Rule = STUDENT

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        return (self.passage if request.role == "passage" else self.query).pick(request, load)


class Spill(Rule):
    """The first until `limit` requests are with it; then whichever would be done sooner."""

    limit: PositiveInt = 32
    first: Rule = TEACHER
    then: Rule = STUDENT

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        first, why = self.first.pick(request, load)
        other, _ = self.then.pick(request, load)
        if load[first].ongoing >= self.limit and load[other].wait_s <= load[first].wait_s:
            return other, f"{first} is full"
        return first, why


class Canary(Rule):
    """A share of the texts, always the same ones, to another encoder than the rest."""

    share: Annotated[float, Field(ge=0, le=1)]
    to: Rule
    rest: Rule

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        rule = self.to if request.draw < self.share else self.rest
        return rule.pick(request, load)


class ByLength(Rule):
    """Requests with a text of more than `characters` to one encoder, all others to another."""

    characters: PositiveInt
    short: Rule = STUDENT
    long: Rule = TEACHER

    def pick(self, request: Facts, load: Mapping[str, Load]) -> tuple[str, str]:
        rule = self.long if request.longest > self.characters else self.short
        return rule.pick(request, load)


RULES: dict[str, type[Rule]] = {
    "asymmetric": Asymmetric,
    "by_length": ByLength,
    "canary": Canary,
    "spill": Spill,
}


def parse_policy(where: str, value: Any, release: str) -> Rule:
    """The rule that a config's value stands for, its encoders named in full.

    Args:
        where: the value's place in the config, for errors.
        value: an encoder, a rule's name, or {a rule's name: its fields}.
        release: the name whose `teacher` and `student` are meant.

    Raises:
        UserError: naming the field.
    """
    if isinstance(value, str) and value not in RULES:
        target = value.rpartition("/")[2]
        if target not in TARGETS:
            raise _unknown(where, value, [*TARGETS, *RULES])
        return To(model=value if "/" in value else f"{release}/{value}")
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise UserError(where, "is no rule", "Give an encoder, or one rule with its fields")
    ((name, fields),) = value.items()
    if name not in RULES:
        raise _unknown(where, str(name), list(RULES))
    where, kind = f"{where}.{name}", RULES[name]
    if not isinstance(fields, dict):
        raise UserError(where, "needs its fields", f"Give {', '.join(kind.model_fields)}")
    if wrong := set(fields) - set(kind.model_fields):
        raise _unknown(f"{where}.{min(wrong, key=str)}", min(wrong, key=str), [*kind.model_fields])
    defaults = {
        key: found.default.model
        for key, found in kind.model_fields.items()
        if isinstance(found.default, To)
    }
    rules = {key for key, found in kind.model_fields.items() if found.annotation is Rule}
    given = {
        key: parse_policy(f"{where}.{key}", inner, release) if key in rules else inner
        for key, inner in {**defaults, **fields}.items()
    }
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join([where, *map(str, fault["loc"])])
        raise UserError(place, fault["msg"], f"See the rule {name!r}") from error


def _unknown(where: str, value: str, known: list[str]) -> UserError:
    near = get_close_matches(value, known, 1)
    fix = f"Did you mean {near[0]!r}" if near else f"Use one of {', '.join(known)}"
    return UserError(where, f"{value!r} is unknown", fix)


@dataclass(frozen=True)
class Policy:
    """A rule, and what holds whatever it picks.

    Attributes:
        patience_s: a request that would wait longer is refused.
        sleepers: encoders that have no replica while no one asks.
        stand_ins: encoder → the one that answers while it sleeps, or when its replicas died.
            Where there is none, requests wait for an encoder that should have replicas.
    """

    rule: Rule
    patience_s: float = math.inf
    sleepers: frozenset[str] = frozenset()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def asleep(self, model: str, load: Mapping[str, Load]) -> bool:
        return model in self.sleepers and not load[model].ready


def choose(
    policy: Policy, request: Facts, load: Mapping[str, Load], contracts: Mapping[str, Terms]
) -> Send | Refuse:
    """Decide who encodes a request, under a policy that `check_policy` has let through."""
    sizes = policy_dims(policy.rule, contracts)
    if request.dimensions is not None and request.dimensions not in sizes:
        allowed = ", ".join(map(str, sizes))
        return Refuse(400, f"dimensions must be one of {allowed} for this model", "dimensions")
    dims = request.dimensions or sizes[0]
    model, why = policy.rule.pick(request, load)
    asleep = policy.asleep(model, load)
    wake = model if asleep else None
    if other := stand_in(policy, model, dims, load, contracts):
        model, why = other, absent(model)
    elif asleep:
        message = "the model is starting; try again later"
        return Refuse(503, message, retry_after_s=RESTART_AFTER_S, wake=wake)
    if (wait_s := load[model].wait_s) > policy.patience_s:
        message = "the model has more to do than it can in time; try again later"
        return Refuse(429, message, retry_after_s=math.ceil(wait_s - policy.patience_s))
    return Send(model, dims, why, wake)


def stand_in(
    policy: Policy, model: str, dims: int, load: Mapping[str, Load], contracts: Mapping[str, Terms]
) -> str | None:
    """Who answers for an encoder of which no replica runs, in vectors of that size.

    None where it runs, or nobody can.
    """

    def away(encoder: str) -> bool:
        # A router that has just begun knows of no replica yet: that alone is no loss.
        return policy.asleep(encoder, load) or load[encoder].lost

    other = policy.stand_ins.get(model)
    if other is None or not away(model) or away(other) or dims not in contracts[other].dims:
        return None
    return other


def absent(model: str) -> str:
    """Why another answers."""
    return f"{model} is not running"


def policy_dims(rule: Rule, contracts: Mapping[str, Terms]) -> tuple[int, ...]:
    """Vector sizes that every encoder behind a rule can give, largest first.

    A student may share only a Matryoshka prefix of its teacher's space, so the sizes of a mixed
    name are those all have: otherwise documents and queries would not fit one index.
    """
    common = set.intersection(*(set(contracts[model].dims) for model in rule.encoders()))
    return tuple(sorted(common, reverse=True))


def auto_policy(teacher: Terms | None, student: Terms | None) -> str:
    """The policy of a name whose operator chose none: mix where that is right, else the small."""
    if student is None:
        return "teacher"
    if teacher is None:
        return "student"
    return "student" if cannot_share_index(teacher, student) else "asymmetric"


def stand_ins(rule: Rule, contracts: Mapping[str, Terms]) -> dict[str, str]:
    """For each encoder of a rule another that may answer for it, where there is one: of the rule
    itself, or the other of its own release."""
    found = {}
    for model in rule.encoders():
        release, _, target = model.rpartition("/")
        sibling = f"{release}/{'student' if target == 'teacher' else 'teacher'}"
        for other in [*rule.encoders(), sibling]:
            if other == model or other not in contracts:
                continue
            if not cannot_share_index(contracts[model], contracts[other]):
                found[model] = other
                break
    return found


def check_policy(where: str, rule: Rule, contracts: Mapping[str, Terms]) -> None:
    """Raise UserError if a rule needs an encoder that is not served, or would mix spaces."""
    first, *others = models = rule.encoders()
    for model in models:
        if model not in contracts:
            raise UserError(
                where,
                f"policy {rule.name!r} needs {model}, which is not served",
                f"Name a release that holds it, with replicas for its {model.rpartition('/')[2]}, "
                "or choose another policy",
            )
    fix = "Give each a name of its own, or distil the student on its teacher's vectors"
    for other in others:
        if why := cannot_share_index(contracts[first], contracts[other]):
            raise UserError(
                where,
                f"policy {rule.name!r} would put vectors of {first} and {other} into one index, "
                f"but {why}",
                fix,
            )
    if not policy_dims(rule, contracts):
        raise UserError(where, f"{', '.join(models)} have no vector size in common", fix)
