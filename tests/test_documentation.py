"""What the READMEs print is true: links lead somewhere, commands parse, recipes validate."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import typer
import yaml

from stillroom.cli import app
from stillroom.config.load import read_recipe
from stillroom.config.recipe import Recipe

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT, capture_output=True, text=True, check=True,
).stdout.split()  # fmt: skip
# A template of model cards has links of the card's own.
DOCUMENTS = sorted(ROOT / name for name in LISTED if "reports/" not in name)
FRONT_PAGE = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
TOP_LEVEL = ("platform", "jobs", "serve", "infra", "tests")


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_of_the_repository_that_is_named_exists(document):
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./:])(?:{'|'.join(TOP_LEVEL)})/[\w./-]*\w", text)
    # Files that a sentence names beside its document, such as `learning/losses.py`.
    named += re.findall(r"`([\w./-]+/|[\w-]+/[\w./-]+\.(?:py|yaml|md))`", prose(text))
    folders = (ROOT, document.parent, document.parent.parent, ROOT / "platform" / "stillroom")
    missing = {n for n in named if not any((folder / n).exists() for folder in folders)}
    assert {name for name in missing if not re.match("[A-Z]+/", name)} == set()


def test_the_front_page_is_at_most_12_kb():
    assert FRONT_PAGE.stat().st_size <= 12 * 1024


def commands(text: str) -> list[str]:
    """What a document prints as a command line of ours, in a block or within a sentence."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "sh", "bash")]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:\.venv/bin/)?stillroom [^`]+)`", prose(text))
    return [
        line.strip()
        for line in (*lines, *inline)
        if re.match(r"\s*(\.venv/bin/)?stillroom [a-z]", line)
    ]


def parse(words: list[str]) -> None:
    """Raises click's error at an unknown command or option; runs nothing."""
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="stillroom")
    while isinstance(command, click.Group) and words:
        inner = command.get_command(context, words[0])
        if inner is None:
            if command.invoke_without_command:
                break
            raise click.UsageError(f"no such command: {words[0]}")
        context = click.Context(inner, info_name=words[0], parent=context)
        command, words = inner, words[1:]
    try:
        command.parse_args(context, list(words))
    except click.MissingParameter:
        pass  # a sentence names a command without its arguments
    except click.exceptions.NoArgsIsHelpError:
        pass


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_printed_parses(document):
    faults = []
    for line in commands(document.read_text(encoding="utf-8")):
        words = shlex.split(line.replace("…", ""), comments=True)[1:]
        try:
            parse([word for word in words if word not in ("·", "[a.b=c", "]")])
        except click.ClickException as error:
            faults.append(f"{line}: {error.format_message()}")
    assert faults == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.M))
    assert named <= targets


def recipe_blocks(document: Path) -> list[dict]:
    blocks = [body for language, body in FENCE.findall(document.read_text(encoding="utf-8"))
              if language == "yaml"]  # fmt: skip
    content = [yaml.safe_load(body) for body in blocks]
    return [
        one for one in content if isinstance(one, dict) and set(one) <= set(Recipe.model_fields)
    ]


RECIPE_BLOCKS = [
    pytest.param(block, id=f"{document.relative_to(ROOT)}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(recipe_blocks(document), 1)
]


@pytest.mark.parametrize("block", RECIPE_BLOCKS)
def test_every_recipe_that_is_printed_validates(block, tmp_path):
    """A fragment stands in the front page's recipe, in place of what that says of its sections."""
    [whole] = recipe_blocks(FRONT_PAGE)
    recipe = {section: dict(content) for section, content in whole.items()}
    for section, content in block.items():
        alone = {"members", "api"} & set(content) or section not in recipe
        recipe[section] = content if alone else {**recipe[section], **content}
    file = tmp_path / "printed.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert read_recipe(file).name == "printed"


def test_the_front_page_prints_a_recipe_of_its_own():
    [whole] = recipe_blocks(FRONT_PAGE)
    assert {"corpus", "teacher", "student", "release"} <= set(whole)
