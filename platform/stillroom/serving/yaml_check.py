"""Checks a YAML file for `serve deploy` strictly: Serve itself ignores misspelt keys."""

import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from stillroom.errors import UserError
from stillroom.serving.config import ServeArgs
from stillroom.serving.errors import unknown_field_message

OUR_IMPORT_PATH = "stillroom.serving.app:build"


def validate_serve_yaml(path: str | Path) -> ServeDeploySchema:
    """Read a Serve config file; every key must be one of Serve's, and under `args` one of ours.

    Raises:
        UserError: with the file and line of the first unknown key, or with what Serve or ServeArgs
            finds wrong with the values.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(str(path), f"is not YAML ({error})", "Correct its syntax") from error
    if not isinstance(loaded, dict):
        raise UserError(str(path), "is not a mapping", "Start from serve/quickstart.yaml")
    assert node is not None
    _check_keys(path, node, ServeDeploySchema)
    try:
        config = ServeDeploySchema.model_validate(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {where}", first["msg"], "See Ray Serve's config schema"
        ) from error
    for application in config.applications:
        if application.import_path == OUR_IMPORT_PATH:
            ServeArgs.read(application.args)
    return config


def _check_keys(path: str | Path, node: yaml.Node, model: type[BaseModel]) -> None:
    """Compare the keys of a YAML mapping, and of the mappings in it, with the fields of `model`."""
    if not isinstance(node, yaml.MappingNode):
        return  # a value of a wrong type: pydantic reports it better
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in node.value:
        if key.value not in fields:
            raise UserError(
                f"{path}:{key.start_mark.line + 1}",
                unknown_field_message(key.value, fields).rstrip("?."),
                "Ray Serve would ignore it without a warning",
            )
        ours = key.value == "args" and _scalar(node, "import_path") == OUR_IMPORT_PATH
        inner = ServeArgs if ours else _model_in(fields[key.value].annotation)
        if inner is not None:
            for child in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _check_keys(path, child, inner)


def _scalar(node: yaml.MappingNode, key: str) -> str | None:
    return next((str(v.value) for k, v in node.value if k.value == key), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside Optional[...] or List[...], if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next(filter(None, map(_model_in, get_args(annotation))), None)
    return None
