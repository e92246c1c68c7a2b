"""The rules of a policy: features of a request and the encoders' load in, one encoder out.

Rules nest: `spill`, or `{asymmetric: {passage: {spill: {limit: 64}}, query: student}}`. The
innermost rules are encoders: `teacher` and `student` of the named release, or `NAME/teacher`
of another release that is served. Everything here is pure: no Ray, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from stillroom.encoders.contract import Role
from stillroom.errors import UserError
from stillroom.release.reader import TARGETS
from stillroom.serving.messages import EmbedRequest, EncoderLoad

CHARACTERS_PER_TOKEN = 4  # to compare token ids with texts
Loads = Mapping[str, EncoderLoad]  # encoder (NAME/teacher or NAME/student) → its load


@dataclass(frozen=True)
class RequestFeatures:
    """Features of a request that a rule may use.

    Attributes:
        dimensions: the requested vector size; None: the policy's largest.
        max_characters: length of its longest text.
        hash_fraction: in [0, 1), uniform over texts, always the same for the same text.
    """

    role: Role
    dimensions: int | None = None
    max_characters: int = 0
    hash_fraction: float = 0.0

    @classmethod
    def from_request(cls, request: EmbedRequest) -> "RequestFeatures":
        """Features of a request's n ≥ 1 texts, or of their token ids."""
        if request.token_ids:
            first = str(list(request.token_ids[0]))
            max_characters = CHARACTERS_PER_TOKEN * max(map(len, request.token_ids))
        else:
            first = request.texts[0]
            max_characters = max(map(len, request.texts))
        digest = blake2b(first.encode("utf-8", "surrogatepass"), digest_size=6).digest()
        hash_fraction = int.from_bytes(digest) / 2**48
        return cls(request.role, request.dimensions, max_characters, hash_fraction)


class Rule(BaseModel):
    """One step of a policy. A field that is a rule is written as a rule in YAML, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def name(self) -> str:
        """The rule's name in YAML."""
        return next(name for name, rule in RULES.items() if rule is type(self))

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        """The encoder to send a request to, and the reason."""
        raise NotImplementedError

    def encoders(self) -> list[str]:
        """All encoders that the rule may pick, each once."""
        nested = (encoder for rule in self.nested_rules() for encoder in rule.encoders())
        return list(dict.fromkeys(nested))

    def nested_rules(self) -> list["Rule"]:
        """The rules among this rule's fields."""
        return [value for _, value in self if isinstance(value, Rule)]


class SingleEncoder(Rule):
    """Always picks one encoder."""

    model: str

    @property
    def name(self) -> str:
        return self.model.rpartition("/")[2]

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        return self.model, self.name

    def encoders(self) -> list[str]:
        return [self.model]


TEACHER, STUDENT = SingleEncoder(model="teacher"), SingleEncoder(model="student")


class Asymmetric(Rule):
    """Documents to one encoder, queries to another.

    By default the large one encodes documents, which is done once, and the small one encodes
    queries, for which a user waits.
    """

    passage: Rule = TEACHER
    query: Rule = STUDENT

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        rule = self.passage if request.role == "passage" else self.query
        return rule.pick(request, loads)


class Spill(Rule):
    """`first` while it has fewer than `limit` requests; then whichever has the shorter wait."""

    limit: PositiveInt = 32
    first: Rule = TEACHER
    then: Rule = STUDENT

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        first, reason = self.first.pick(request, loads)
        second, _ = self.then.pick(request, loads)
        full = loads[first].ongoing >= self.limit
        if full and loads[second].wait_s <= loads[first].wait_s:
            return second, f"{first} is full"
        return first, reason


class Canary(Rule):
    """A share of the texts, always the same texts, to one encoder; all others to another."""

    share: Annotated[float, Field(ge=0, le=1)]
    to: Rule
    rest: Rule

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        rule = self.to if request.hash_fraction < self.share else self.rest
        return rule.pick(request, loads)


class ByLength(Rule):
    """Requests with a text of more than `characters` to one encoder; all others to another."""

    characters: PositiveInt
    short: Rule = STUDENT
    long: Rule = TEACHER

    def pick(self, request: RequestFeatures, loads: Loads) -> tuple[str, str]:
        rule = self.long if request.max_characters > self.characters else self.short
        return rule.pick(request, loads)


RULES: dict[str, type[Rule]] = {
    "asymmetric": Asymmetric,
    "by_length": ByLength,
    "canary": Canary,
    "spill": Spill,
}


def parse_policy(where: str, value: Any, release: str) -> Rule:
    """The rule that a config's value describes, with full names of encoders.

    Args:
        where: the value's place in the config, for errors.
        value: an encoder, a rule's name, or {a rule's name: its fields}.
        release: the release that `teacher` and `student` refer to.

    Raises:
        UserError: names the invalid field.
    """
    if isinstance(value, str) and value not in RULES:
        target = value.rpartition("/")[2]
        if target not in TARGETS:
            raise _unknown(where, value, [*TARGETS, *RULES])
        return SingleEncoder(model=value if "/" in value else f"{release}/{value}")
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise UserError(where, "is not a rule", "Give an encoder, or one rule with its fields")
    ((name, fields),) = value.items()
    if name not in RULES:
        raise _unknown(where, str(name), list(RULES))
    return _parse_fields(f"{where}.{name}", name, fields, release)


def _parse_fields(where: str, name: str, fields: Any, release: str) -> Rule:
    """The rule `name` with the given fields; rules inside them are parsed as well."""
    rule_type = RULES[name]
    known = rule_type.model_fields
    if not isinstance(fields, dict):
        raise UserError(where, "needs its fields", f"Give {', '.join(known)}")
    if unknown := set(fields) - set(known):
        first = min(unknown, key=str)
        raise _unknown(f"{where}.{first}", first, [*known])
    defaults = {
        key: field.default.model
        for key, field in known.items()
        if isinstance(field.default, SingleEncoder)
    }
    values = {
        key: parse_policy(f"{where}.{key}", value, release)
        if known[key].annotation is Rule
        else value
        for key, value in {**defaults, **fields}.items()
    }
    try:
        return rule_type.model_validate(values)
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        field_path = ".".join([where, *map(str, first_error["loc"])])
        raise UserError(field_path, first_error["msg"], f"See the rule {name!r}") from error


def _unknown(where: str, value: str, known: list[str]) -> UserError:
    nearest = get_close_matches(value, known, 1)
    fix = f"Did you mean {nearest[0]!r}" if nearest else f"Use one of {', '.join(known)}"
    return UserError(where, f"{value!r} is unknown", fix)
