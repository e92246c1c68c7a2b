"""The model card of an encoder's folder: README.md, as model hubs show it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stillroom.encoders.contract import Contract
from stillroom.encoders.export.runtimes import EXPORT
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.model_names import HUB_ID, locate
from stillroom.errors import UserError
from stillroom.reports.render import table
from stillroom.storage.artifacts import Artifact, Store

README = "README.md"

CARDS = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.reports", "."), trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
)  # fmt: skip

CARDS.filters["shown"] = lambda prompt: f"`{json.dumps(prompt, ensure_ascii=False)}`"


def write_card(
    folder: Path,
    name: str,
    made: Artifact | None,
    store: Store,
    *,
    report: Mapping[str, Any] | None = None,
    release: str | None = None,
) -> None:
    """Writes README.md beside an encoder, exported or not.

    Args:
        made: the artifact that it is or was exported from; None is a model from elsewhere.
        report: what was measured; None is the newest report of `made`.
        release: the reference of the release that it is in.
    """
    contract = Contract.read(folder)
    exported = _json(folder / EXPORT)
    role = made.stage if made else None
    line = list(_lineage(made, store)) if made else []
    report = report or _report_of(made, store)
    of_st = (folder / sentence_transformers.MODULES).exists()
    tags = ["sentence-transformers"] if of_st else []
    tags += ["sentence-similarity", "feature-extraction", "stillroom"]
    tags += ["distillation"] if role == "student" else []
    tags += [exported["format"]] if exported and exported["format"] not in tags else []
    text = CARDS.get_template("model_card.md").render(
        name=name,
        role=role,
        contract=contract,
        exported=exported,
        license=_license(contract.base),
        base_model=contract.base if _on_hub(contract.base) else None,
        opens_in_sentence_transformers=of_st,
        tags=tags,
        release=release,
        model=f"{release.partition('/')[2].rpartition('-')[0]}/{role}" if release else None,
        report=report,
        table=table(report) if report else [],
        recipe=[(one.ref, _yaml(one)) for one in line if one.stage in ("teacher", "student")],
        data=_data(line),
    )
    (folder / README).write_text(text, encoding="utf-8")


def artifact_of(model: str, store: Store) -> Artifact | None:
    """The artifact that a model's name stands for, if it is one's."""
    if model.split("/")[0] in ("teacher", "student") and not Path(model).exists():
        return store.find(model)
    return None


def _lineage(made: Artifact, store: Store) -> Iterator[Artifact]:
    """What an artifact was made from, each after its own, and the artifact last."""
    known = {(one.stage, one.key): one for one in store.published()}
    seen: set[str] = set()

    def walk(one: Artifact) -> Iterator[Artifact]:
        seen.add(one.ref)
        for key in one.manifest["made_by"]["inputs"].values():
            for before in (a for (_, its), a in known.items() if its == key):
                if before.ref not in seen:
                    yield from walk(before)
        yield one

    return walk(made)


def _report_of(made: Artifact | None, store: Store) -> Mapping[str, Any] | None:
    if made is None:
        return None
    for found in store.published("report"):
        if found.manifest["made_by"]["inputs"].get(made.stage) == made.key:
            return _json(store.open(found.stage, found.name, found.key).path / "report.json")
    return None


def _data(line: list[Artifact]) -> str | None:
    """The data card of the corpus, its headings under ours."""
    for corpus in line:
        if corpus.stage == "corpus" and (corpus.path / "card.md").exists():
            text = (corpus.path / "card.md").read_text(encoding="utf-8")
            return re.sub(r"^#", "##", text.removeprefix("# Data card").strip(), flags=re.M)
    return None


def _on_hub(base: str) -> bool:
    return bool(HUB_ID.fullmatch(base)) and not Path(base).exists()


def _license(base: str) -> str | None:
    """What the base's own card states."""
    try:
        card = (locate(base) / README).read_text(encoding="utf-8")
        stated = yaml.safe_load(card.split("---")[1])["license"]
    except (UserError, OSError, IndexError, KeyError, TypeError, yaml.YAMLError):
        return None
    return str(stated)


def _yaml(artifact: Artifact) -> str:
    section = artifact.manifest["made_by"]["section"]
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True).strip()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
