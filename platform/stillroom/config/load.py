"""A recipe's file → the recipe, or every fault in it by field. The only reader of YAML."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from stillroom.config.recipe import Recipe
from stillroom.errors import UserError

# What a variable of the environment is called that should not be shown.
SECRET = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(?:_|$)", re.I)

PASSWORD = re.compile(r"\w://[^/\s@]*:[^/\s@]+@")


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b=c` overrides, validated.

    `name` defaults to the file's; `root` to STILLROOM_ROOT, then to `runs`.

    Raises:
        UserError: naming the file and every field at fault.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(str(path), "there is no such recipe", "Give the path of a YAML file")
    try:
        config = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise UserError(str(path), "is not a mapping", "Start from a file in jobs/recipes")
        given = {}
        for override in overrides:
            field, equals, value = override.partition("=")
            if not equals or not field:
                raise UserError(override, "is no override", "Write it as section.field=value")
            given[field] = value
            # The loader of the file itself types the value, so 5e-4 is a number in both.
            parsed = OmegaConf.create(f"value: {value}")
            OmegaConf.update(config, field, parsed["value"], merge=False, force_add=True)
        written, content = (OmegaConf.to_container(config, resolve=of) for of in (False, True))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError) as fault:
        problem = " ".join(str(fault).split())
        raise UserError(str(path), f"cannot be read: {problem}", "Mend the YAML") from fault
    assert isinstance(content, dict) and isinstance(written, dict)
    content.setdefault("name", path.stem)
    content.setdefault("root", os.environ.get("STILLROOM_ROOT", "runs"))
    for field in (*_secrets(given), *_secrets(written), *_secrets(content)):
        raise UserError(
            f"{path}: {field}",
            "holds a secret, which would be copied into manifests and logs",
            "Take it out: storage reads the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, say), and an endpoint's key is named by key_variable",
        )
    # Strict validation of Python objects refuses lists for tuples; of JSON it does not.
    return validated(Recipe, content, str(path))


def _secrets(content: Any, field: str = "") -> Iterator[str]:
    """The fields, at any depth, with an address of the form SCHEME://USER:PASSWORD@…, or with a
    variable of the environment that is called a key, a token or the like."""
    if isinstance(content, str):
        named = re.findall(r"\$\{oc\.env:\s*(\w+)", content)
        if PASSWORD.search(content) or any(SECRET.search(name) for name in named):
            yield field
    items = content.items() if isinstance(content, dict) else ()
    for key, value in enumerate(content) if isinstance(content, list) else items:
        yield from _secrets(value, f"{field}.{key}".lstrip("."))


Model = Any


def validated(model: type[Model], content: Any, where: str) -> Model:
    """`content` as `model`, or a UserError that lists every fault with its field."""
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as fault:
        faults = [_explain(error, model) for error in fault.errors()]
        if len(faults) == 1:
            field, problem, fix = faults[0]
            raise UserError(f"{where}: {field}" if field else where, problem, fix) from None
        lines = "".join(f"\n  {field}: {problem}. {fix}." for field, problem, fix in faults)
        raise UserError(where, f"{len(faults)} fields are wrong", f"Mend each:{lines}\n") from None


def _explain(error: Any, model: Any) -> tuple[str, str, str]:
    written, known = _walked(model, error["loc"])
    field = ".".join(str(part) for part in written)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        fix = f"Did you mean {near[0]!r}?"[:-1] if near else f"Use one of {', '.join(known)}"
        return field, "is not a field of a recipe", fix
    if error["type"] == "missing":
        return field, "is missing", "Add it"
    problem = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    if isinstance(given, str | int | float | bool):
        problem = f"{given!r} is refused: {problem[0].lower()}{problem[1:]}"
    return field, problem, "Correct it in the recipe or on the command line"


def _walked(model: Any, loc: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """A fault's path as the recipe writes it, and the fields that there are in its section."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    path: list[Any] = []
    fields: list[str] = []
    for part in loc:
        options = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
        options = [_followed(schema, option) for option in options]
        inside = [child for option in options for child in _children(option, part)]
        tagged = [option for option in options if part in _tags(option)]
        if tagged and not inside:  # pydantic puts the tag of a union into the path
            node = tagged[0]
            continue
        path.append(part)
        fields = [name for option in options for name in option.get("properties", {})]
        node = _followed(schema, inside[0]) if inside else {}
    return path, fields


def _children(option: dict[str, Any], part: Any) -> list[dict[str, Any]]:
    """What the schema says of a field, of any key of a mapping, or of any item of a list."""
    if isinstance(part, int):
        return [option["items"]] if "items" in option else []
    named = option.get("properties", {})
    return [named[part]] if part in named else [*option.get("patternProperties", {}).values()]


def _tags(option: dict[str, Any]) -> list[Any]:
    """What tells an option of a union from the others: its `format`, `objective` or `data`."""
    named = option.get("properties", {})
    told = [named.get(field, {}) for field in ("format", "objective", "data")]
    return [tag for schema in told for tag in (schema.get("const"), *schema.get("enum", ()))]


def _followed(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
