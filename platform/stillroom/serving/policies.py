"""Which of a release's encoders answers a request: numbers in, a decision out, no Ray.

A policy may send one name's requests to two encoders only when their vectors can lie in one
index: the same space, one normalisation and a vector size that both can give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stillroom.encoders.contract import Role, Terms, cannot_share_index
from stillroom.errors import UserError

Target = Literal["teacher", "student"]
Policy = Literal["asymmetric", "student", "teacher"]

# policy → role → who encodes it
ROUTES: dict[Policy, dict[Role, Target]] = {
    "asymmetric": {"passage": "teacher", "query": "student"},
    "student": {"passage": "student", "query": "student"},
    "teacher": {"passage": "teacher", "query": "teacher"},
}


@dataclass(frozen=True)
class Facts:
    """What a policy may look at in a request."""

    role: Role
    dimensions: int | None = None  # asked for; None = the policy's largest


@dataclass(frozen=True)
class Send:
    target: Target
    dims: int  # size of the vectors to return
    why: str


@dataclass(frozen=True)
class Refuse:
    status: int
    message: str
    param: str | None = None


def choose(policy: Policy, request: Facts, contracts: Mapping[Target, Terms]) -> Send | Refuse:
    """Decide who encodes a request under `policy`, which `check_policy` has let through."""
    sizes = policy_dims(policy, contracts)
    if request.dimensions is not None and request.dimensions not in sizes:
        allowed = ", ".join(map(str, sizes))
        return Refuse(400, f"dimensions must be one of {allowed} for this model", "dimensions")
    target = ROUTES[policy][request.role]
    return Send(target, request.dimensions or sizes[0], f"{policy}: {request.role}")


def policy_dims(policy: Policy, contracts: Mapping[Target, Terms]) -> tuple[int, ...]:
    """Vector sizes that every encoder behind `policy` can give, largest first.

    A student may share only a Matryoshka prefix of its teacher's space, so the sizes of a mixed
    name are those both have: otherwise documents and queries would not fit one index.
    """
    behind = [contracts[target] for target in sorted(set(ROUTES[policy].values()))]
    common = set.intersection(*(set(contract.dims) for contract in behind))
    return tuple(sorted(common, reverse=True))


def auto_policy(teacher: Terms | None, student: Terms | None) -> Policy:
    """The policy of a name whose operator chose none: mix where that is right, else the small."""
    if student is None:
        return "teacher"
    if teacher is None:
        return "student"
    return "student" if cannot_share_index(teacher, student) else "asymmetric"


def check_policy(where: str, policy: Policy, contracts: Mapping[Target, Terms]) -> None:
    """Raise UserError if `policy` needs an encoder that is not served, or would mix spaces."""
    targets = set(ROUTES[policy].values())
    for target in sorted(targets - set(contracts)):
        raise UserError(
            where,
            f"policy {policy!r} needs the {target}, which is not served",
            f"Give {target}.replicas at least 1 and a release that holds it, "
            "or choose another policy",
        )
    if len(targets) > 1 and (why := cannot_share_index(contracts["teacher"], contracts["student"])):
        raise UserError(
            where,
            f"policy {policy!r} would put teacher and student vectors into one index, but {why}",
            "Use policy 'student' or 'teacher', or distil the student on its teacher's vectors",
        )
