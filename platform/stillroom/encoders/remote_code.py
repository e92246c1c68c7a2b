"""Python code that comes with a model: which files name it, and why it is refused.

Nothing in a model's folder can enable it. Only the user can, for each run and each model: in a
recipe's section, or with a command's option.
"""

import json
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

CONFIG_FILES = ("config.json", "tokenizer_config.json")


def custom_classes(folder: Path) -> list[str]:
    """The classes that a folder's files name as the model's own, each with its file."""
    classes = []
    for file in CONFIG_FILES:
        for kind, value in (_field(folder / file, "auto_map") or {}).items():
            names = value if isinstance(value, list) else [value]
            classes += [f"{file}: {kind} is {name}" for name in names if name]
    return classes


def remote_code_error(folder: Path) -> UserError:
    """The error for a model that needs code which the user has not allowed."""
    return UserError(
        str(folder),
        f"can be loaded only by running its own code ({'; '.join(custom_classes(folder))})",
        "Read that code. If you trust it, set trust_remote_code: true in the recipe's teacher or "
        "student section, or give the command --trust-remote-code; else name another model",
    )


def needs_remote_code(folder: Path) -> bool:
    """Whether transformers lacks the model's architecture or tokenizer.

    For a missing tokenizer class, transformers would silently use the architecture's usual one.
    """
    classes = custom_classes(folder)
    if any("AutoConfig" in name for name in classes):
        # Imported here: it takes a second.
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if _field(folder / "config.json", "model_type") not in CONFIG_MAPPING_NAMES:
            return True
    if any("AutoTokenizer" in name for name in classes):
        import transformers

        name = _field(folder / "tokenizer_config.json", "tokenizer_class")
        return name is None or not hasattr(transformers, name)
    return False


def _field(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError):
        return None
