"""Python code that comes with a model: which files name it, and why it is refused.

Nothing in a model's folder can enable it. Only the user can, for each run and each model: in a
recipe's section, or with a command's option.
"""

import json
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

CONFIG_FILES = ("config.json", "tokenizer_config.json")

LIBRARY = "sentence_transformers."


def custom_classes(folder: Path) -> list[str]:
    """The classes that a folder's files name as the model's own, each with its file."""
    classes = []
    for file in CONFIG_FILES:
        for kind, value in (_field(folder / file, "auto_map") or {}).items():
            names = value if isinstance(value, list) else [value]
            classes += [f"{file}: {kind} is {name}" for name in names if name]
    return classes + custom_modules(folder)


def custom_modules(folder: Path) -> list[str]:
    """The classes, other than its own, that sentence-transformers would import for a folder, each
    with its file.

    For an activation that is not trusted the library would silently take another.
    """
    modules = _content(folder / "modules.json")
    if not isinstance(modules, list):
        return []
    classes = []
    for module in modules:
        kind = str(module.get("type")) if isinstance(module, dict) else ""
        if not kind.startswith(LIBRARY):
            classes.append(f"modules.json: type is {kind}")
    for path in sorted(folder.rglob("*config.json")):
        content = _content(path)
        if not isinstance(content, dict):
            continue
        file = path.relative_to(folder).as_posix()
        if path.name == "router_config.json":
            kinds = [str(kind) for kind in dict(content.get("types") or {}).values()]
            classes += [f"{file}: {kind}" for kind in kinds if not kind.startswith(LIBRARY)]
        activation = content.get("activation_function") if path.parent != folder else None
        if isinstance(activation, str) and not activation.startswith("torch."):
            classes.append(f"{file}: activation_function is {activation}")
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
    """Whether transformers lacks the model's architecture or tokenizer, or sentence-transformers
    lacks one of its modules.

    transformers would silently use an architecture's usual class for a missing tokenizer, and for a
    model that changes an architecture which it knows: gte-Qwen2 and GritLM would then be causal.
    """
    classes = custom_classes(folder)
    if custom_modules(folder) or any("AutoModel is " in name for name in classes):
        return True
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
    content = _content(path)
    return content.get(name) if isinstance(content, dict) else None


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
