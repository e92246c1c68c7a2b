"""Prompts of a model by the names that its authors gave them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillroom.encoders.contract import BaseContract, Prompts, Role
from stillroom.errors import UserError

# The names of a role's own prompt, as sentence-transformers has them; the first one that is set.
ROLE_NAMES: dict[Role, tuple[str, ...]] = {
    "query": ("query",),
    "passage": ("document", "passage", "corpus"),
}


@dataclass(frozen=True)
class ModelPrompts:
    """The prompts that a model's folder has; contracts have fields of the same names."""

    prompts: Prompts = field(default_factory=Prompts)
    named_prompts: dict[str, str] = field(default_factory=dict)


def prompt_by_name(model: BaseContract | ModelPrompts | None, name: str, where: str) -> str:
    """The text of a prompt: one that the model's authors named, or `query`, `document` or
    `passage`, which are the prompts of the roles.

    Args:
        model: None: several models at once.
        where: what gives the name, for the error.

    Raises:
        UserError: for another name; it lists the model's.
    """
    prompts: Prompts | None = getattr(model, "prompts", None)
    if prompts is None:
        raise UserError(
            where, f"is {name!r}, and several models at once have no prompts", "Leave it out"
        )
    roles = {"query": prompts.query, "document": prompts.passage, "passage": prompts.passage}
    texts: dict[str, str] = {**roles, **getattr(model, "named_prompts", {})}
    if name not in texts:
        raise UserError(
            where, f"the model has no prompt {name!r}", f"Use one of {', '.join(texts)}"
        )
    return texts[name]


def replace_prompts(
    model: BaseContract | ModelPrompts,
    texts: Mapping[str, str] | None,
    names: Mapping[str, str | None] | None,
    *,
    where: str = "prompt",
) -> dict[str, Any]:
    """The fields `prompts` and `named_prompts` of a contract whose prompts are replaced.

    Args:
        texts: of all roles; None keeps the prompts.
        names: role → the name of its prompt; without one, the role keeps its prompt.
        where: what gives the names, for the error.

    Raises:
        UserError: for a name that the model does not have.
    """
    prompts: Prompts = getattr(model, "prompts", Prompts())
    chosen: dict[str, str] = {} if texts is None else Prompts(**texts).model_dump()
    for role, name in (names or {}).items():
        if name is not None:
            chosen[role] = prompt_by_name(model, name, f"{where}.{role}")
    # A role's new prompt is what its names stand for from now on.
    replaced = {name for role, own in ROLE_NAMES.items() if role in chosen for name in own}
    named: dict[str, str] = getattr(model, "named_prompts", {})
    return {
        "prompts": prompts.model_copy(update=chosen),
        "named_prompts": {name: text for name, text in named.items() if name not in replaced},
    }
