"""Explains why a step has no artifact: the changes since the newest one of its name."""

import json
from collections.abc import Iterator
from typing import Any

from stillroom.errors import UserError
from stillroom.pipeline.step import Step
from stillroom.storage.artifacts import Store


def why_missing(step: Step, store: Store) -> str:
    """Why a step has no artifact yet, compared with the newest artifact of its name."""
    try:
        newest = store.find(f"{step.stage}/{step.name}")
    except UserError:
        return "not made yet"
    changes = list(_changes(newest.manifest.get("made_by", {}), step.made_by, step.stage))
    return "; ".join(changes) or "the newest was removed or is incomplete"


def _changes(old: dict[str, Any], new: dict[str, Any], stage: str) -> Iterator[str]:
    if old.get("version") != new["version"]:
        yield f"stage {stage} is now version {new['version']}"
    for role in sorted({*old.get("inputs", {}), *new["inputs"]}):
        if old.get("inputs", {}).get(role) != new["inputs"].get(role):
            yield f"{role} changed"
    for name in sorted({*old.get("sources", {}), *new["sources"]}):
        if old.get("sources", {}).get(name) != new["sources"].get(name):
            yield f"the content of {name} changed"
    old_values = _flat(old.get("section", {}), stage)
    new_values = _flat(new["section"], stage)
    for name in sorted({*old_values, *new_values}):
        before, after = old_values.get(name, "unset"), new_values.get(name, "unset")
        if before != after:
            yield f"{name}: {before} → {after}"


def _flat(value: Any, name: str) -> dict[str, str]:
    """Dotted name → JSON of every value inside nested dicts."""
    if isinstance(value, dict) and value:
        return {k: v for part in value for k, v in _flat(value[part], f"{name}.{part}").items()}
    return {name: json.dumps(value, ensure_ascii=False)}
