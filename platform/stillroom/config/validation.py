"""Plain data → a section of a recipe, or one error that lists every wrong field and its fix."""

import difflib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillroom.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
Schema = dict[str, Any]  # JSON schema, as pydantic writes it


def validate(model: type[Model], content: Any, where: str) -> Model:
    """`content` as an instance of `model`.

    Args:
        content: mappings, lists, strings, numbers and None, as YAML holds them.
        where: the file or command that `content` comes from, for the error.

    Raises:
        UserError: with the path, the problem and the fix of every wrong field.
    """
    try:
        # Strict validation of Python objects refuses lists for tuples; that of JSON does not.
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = [_explain(details, model) for details in error.errors()]
        if len(problems) == 1:
            field, problem, fix = problems[0]
            raise UserError(f"{where}: {field}" if field else where, problem, fix) from None
        lines = "".join(f"\n  {field}: {problem}. {fix}." for field, problem, fix in problems)
        raise UserError(
            where, f"{len(problems)} fields are wrong", f"Correct each:{lines}\n"
        ) from None


def _explain(details: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    """One of pydantic's errors as field, problem and fix."""
    path, known = _locate(model, details["loc"])
    field = ".".join(str(part) for part in path)
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(details["loc"][-1]), known, n=1, cutoff=0.5)
        fix = f"Did you mean {close[0]!r}?"[:-1] if close else f"Use one of {', '.join(known)}"
        return field, "is not a field of a recipe", fix
    if details["type"] == "missing":
        return field, "is missing", "Add it"
    problem = details["msg"].removeprefix("Value error, ")
    value = details.get("input")
    if isinstance(value, str | int | float | bool):
        problem = f"{value!r} is not valid: {problem[0].lower()}{problem[1:]}"
    return field, problem, "Correct it in the recipe or on the command line"


def _locate(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[Any], list[str]]:
    """The path of a wrong field as the recipe writes it, and the fields that its section has.

    Args:
        loc: pydantic's path, which also holds the tag of each union that it passes.
    """
    schema = model.model_json_schema()
    node: Schema = schema
    path: list[Any] = []
    fields: list[str] = []
    for part in loc:
        options = [node, *node.get("anyOf", []), *node.get("oneOf", [])]
        options = [_resolve(schema, option) for option in options]
        children = [child for option in options for child in _children(option, part)]
        tagged = [option for option in options if part in _tags(option)]
        if tagged and not children:  # a tag, which is not part of the recipe's path
            node = tagged[0]
            continue
        path.append(part)
        fields = [name for option in options for name in option.get("properties", {})]
        node = _resolve(schema, children[0]) if children else {}
    return path, fields


def _children(schema: Schema, part: Any) -> list[Schema]:
    """Schemas of a field, of a mapping's values where any key is allowed, or of a list's items."""
    if isinstance(part, int):
        return [schema["items"]] if "items" in schema else []
    properties = schema.get("properties", {})
    if part in properties:
        return [properties[part]]
    return [*schema.get("patternProperties", {}).values()]


def _tags(schema: Schema) -> list[Any]:
    """Values of the fields that distinguish the options of our unions."""
    properties = schema.get("properties", {})
    discriminators = [properties.get(field, {}) for field in ("format", "objective", "data")]
    return [tag for field in discriminators for tag in (field.get("const"), *field.get("enum", ()))]


def _resolve(schema: Schema, node: Schema) -> Schema:
    """`node` itself, or the definition that its `$ref` names."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
