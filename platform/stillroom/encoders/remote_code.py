"""Python that a model brings with it: what asks for it, and why it is refused.

Nothing in a model's folder can turn it on. Whoever loads the model says so each time, for that
model: a recipe's section, or a command's option.
"""

import json
from pathlib import Path

from stillroom.errors import UserError

FILES = ("config.json", "tokenizer_config.json")


def asked_for(folder: Path) -> list[str]:
    """The classes that a folder's files name as its own, each with its file."""
    found = []
    for file in FILES:
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for kind, names in (content.get("auto_map") or {}).items():
            of_kind = names if isinstance(names, list) else [names]
            found += [f"{file}: {kind} is {name}" for name in of_kind if name]
    return found


def refusal(folder: Path) -> UserError:
    return UserError(
        str(folder),
        f"can be loaded only by running code of its own ({'; '.join(asked_for(folder))})",
        "Read that code. If you trust it, set trust_remote_code: true in the recipe's teacher or "
        "student section, or give the command --trust-remote-code; else name another model",
    )


def needs_code(folder: Path) -> bool:
    """Whether the architecture is one that transformers does not have itself."""
    if not any("AutoConfig" in one for one in asked_for(folder)):
        return False
    # Late: it takes a second.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    return kind not in CONFIG_MAPPING_NAMES
