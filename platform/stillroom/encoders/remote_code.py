"""Python that a model brings with it: what asks for it, and why it is refused.

Nothing in a model's folder can turn it on. Whoever loads the model says so each time, for that
model: a recipe's section, or a command's option.
"""

import json
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

FILES = ("config.json", "tokenizer_config.json")


def asked_for(folder: Path) -> list[str]:
    """The classes that a folder's files name as its own, each with its file."""
    found = []
    for file in FILES:
        for kind, names in (_field(folder / file, "auto_map") or {}).items():
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
    """Whether its architecture or tokenizer is one that transformers does not have itself. In the
    place of such a tokenizer transformers would take the architecture's usual one, in silence."""
    asked = asked_for(folder)
    if any("AutoConfig" in one for one in asked):
        # Late: it takes a second.
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if _field(folder / "config.json", "model_type") not in CONFIG_MAPPING_NAMES:
            return True
    if any("AutoTokenizer" in one for one in asked):
        import transformers

        name = _field(folder / "tokenizer_config.json", "tokenizer_class")
        return name is None or not hasattr(transformers, name)
    return False


def _field(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None
