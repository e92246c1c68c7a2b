"""A recipe's YAML file → the validated recipe. The only reader of recipes."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from omegaconf.resolvers import oc

from stillroom.config.recipe import Recipe
from stillroom.config.secrets import SECRET_NAME, secret_fields
from stillroom.config.validation import Model, validate
from stillroom.errors import UserError, one_line


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file, with `section.field=value` overrides, validated.

    `name` defaults to the file's name; `root` to `STILLROOM_ROOT`, then to `runs`. `${oc.env:NAME}`
    reads an environment variable that the recipe's `environment` lists.

    Raises:
        UserError: naming the file and every wrong field.
    """
    path = Path(path)
    config = _parse(path)
    _apply(config, overrides)
    content = _resolve(config, path)
    for field in secret_fields(content, os.environ):
        raise _holds_a_secret(f"{path}: {field}")
    content.setdefault("name", path.stem)
    return validate(Recipe, content, str(path))


def read_fields(model: type[Model], fields: Sequence[str], where: str) -> Model:
    """A section of `field=value` alone, validated.

    Args:
        where: for errors.

    Raises:
        UserError: naming every wrong field.
    """
    config = OmegaConf.create({})
    _apply(config, list(fields))
    return validate(model, _resolve(config, Path(where)), where)


def _parse(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(
            str(path),
            "there is no such recipe",
            "Give the path of a YAML file. `stillroom init` writes one",
        )
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError) as error:
        raise _yaml_error(str(path), error) from error
    if not isinstance(config, DictConfig):
        raise UserError(
            str(path), "is not a mapping of sections", "Start from `stillroom init OUT.yaml`"
        )
    return config


def _apply(config: DictConfig, overrides: list[str] | tuple[str, ...]) -> None:
    """Sets the fields in place."""
    for override in overrides:
        field, equals, value = override.partition("=")
        if not equals or not field:
            raise UserError(override, "is not an override", "Write it as section.field=value")
        try:
            # YAML types the value as it would in the file: 5e-4 is a number in both.
            parsed = OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=False)
            assert isinstance(parsed, dict)
            OmegaConf.update(config, field, parsed["value"], merge=False, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, TypeError) as error:
            raise _yaml_error(override, error) from error


def _resolve(config: DictConfig, path: Path) -> dict[str, Any]:
    """The recipe as plain data, with its `${…}` references replaced."""
    listed = OmegaConf.to_container(config, resolve=False)
    assert isinstance(listed, dict)
    with _listed_variables_only(listed.get("environment")) as refused:
        try:
            content = OmegaConf.to_container(config, resolve=True)
        except OmegaConfBaseException as error:
            where = f"{path}: {error.full_key}"
            if refused and SECRET_NAME.search(refused[0]):
                raise _holds_a_secret(where) from error
            if refused:
                raise UserError(
                    where,
                    f"reads the environment variable {refused[0]}, which the recipe does not list",
                    f"Add `environment: [{refused[0]}]` to the recipe; its value will be in "
                    "manifests and logs",
                ) from error
            raise _reference_error(path, error) from error
    assert isinstance(content, dict)
    return content


@contextmanager
def _listed_variables_only(listed: Any) -> Iterator[list[str]]:
    """In this block, `${oc.env:NAME}` reads only listed variables whose names say no secret.

    However the name is written, a resolver sees it without quotes and with inner references
    replaced. Yields the names that were refused.
    """
    refused: list[str] = []

    def read_variable(name: str, *default: Any) -> Any:
        if SECRET_NAME.search(name) or not isinstance(listed, list) or name not in listed:
            refused.append(name)
            raise KeyError(name)
        return oc.env(name, *default)

    OmegaConf.register_resolver("oc.env", read_variable, replace=True)
    try:
        yield refused
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def _holds_a_secret(where: str) -> UserError:
    return UserError(
        where,
        "holds a secret, which would be copied into manifests and logs",
        "Remove it. Storage reads its credentials from the environment (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, for example); for an endpoint, api_key_env names the variable that "
        "holds the key",
    )


def _yaml_error(where: str, error: Exception) -> UserError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        problem = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    else:
        problem = one_line(error)
    return UserError(where, f"is not valid YAML: {problem}", "Correct the YAML")


def _reference_error(path: Path, error: OmegaConfBaseException) -> UserError:
    """An error for a `${…}` that cannot be replaced: a missing variable, most often."""
    where, text = f"{path}: {error.full_key}", str(error)
    if missing := re.search(r"Environment variable '([^']+)' not found", text):
        name = missing[1]
        return UserError(
            where,
            f"needs the environment variable {name}, which is not set",
            f"Set it (export {name}=…), or write a value instead of ${{oc.env:{name}}}",
        )
    if isinstance(error, InterpolationKeyError) and (unknown := re.search(r"'([^']+)'", text)):
        return UserError(
            where,
            f"refers to ${{{unknown[1]}}}, which is not a field of this recipe",
            "Correct the reference",
        )
    problem = " ".join(text.split("full_key:")[0].split())
    kind = "cannot be resolved" if isinstance(error, InterpolationResolutionError) else "is wrong"
    return UserError(where, f"the reference {kind}: {problem}", "Correct the text within ${…}")
