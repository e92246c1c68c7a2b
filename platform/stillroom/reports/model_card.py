"""The model card of an encoder's folder: README.md with the metadata that model hubs read."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stillroom.encoders.contract import BaseContract
from stillroom.encoders.export.runtimes import EXPORT_FILE
from stillroom.encoders.files import sentence_transformers
from stillroom.encoders.model_names import HUB_ID, locate_model
from stillroom.errors import UserError, isolate_words, without_controls
from stillroom.reports.markdown import markdown_code, markdown_row
from stillroom.reports.tables import elsewhere_table, score_table, unreliable_speeds, verdict
from stillroom.storage.artifacts import Artifact, Store

README = "README.md"

CARDS = jinja2.Environment(
    loader=jinja2.PackageLoader("stillroom.reports", "."), trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
)  # fmt: skip

CARDS.filters["as_row"] = markdown_row
CARDS.filters["as_code"] = markdown_code
CARDS.filters["as_json"] = lambda prompt: json.dumps(prompt, ensure_ascii=False)
CARDS.filters["as_words"] = lambda message: isolate_words(without_controls(message))


@dataclass(frozen=True)
class Origin:
    """Where a model comes from that was trained elsewhere.

    Attributes:
        model: its name on every machine.
        fingerprint: of its files.
        license: that its own card says; None: unknown.
        measured: what was measured of it and its partner in the release, as a sentence.
    """

    model: str
    fingerprint: str
    license: str | None
    measured: str | None
    proof: tuple[int, float] | None = None  # texts, and their least cosine to the library's vectors


def write_model_card(
    folder: Path,
    name: str,
    artifact: Artifact | None,
    store: Store,
    *,
    report: Mapping[str, Any] | None = None,
    release: str | None = None,
    role: str | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes README.md into the folder of an encoder or of an export.

    Args:
        artifact: the encoder's artifact, or the exported one; None for a model from elsewhere.
        report: the content of report.json; None: of the artifact's newest report.
        release: the reference of the release that the folder is in.
        role: teacher or student in that release; None: as its artifact was trained.
        origin: of a model that was trained elsewhere.
    """
    contract = BaseContract.read(folder)
    exported = _read_json(folder / EXPORT_FILE)
    stage = artifact.stage if artifact else None
    role = role or stage
    base = origin.model if origin else _base(contract)
    lineage = list(_lineage(artifact, store)) if artifact else []
    report = report or _newest_report(artifact, store)
    sentence_transformers_folder = (folder / sentence_transformers.MODULES_FILE).exists()
    tags = ["sentence-transformers"] if sentence_transformers_folder else []
    tags += ["sentence-similarity", "feature-extraction", "stillroom"]
    tags += ["distillation"] if stage == "student" else []
    tags += [exported["format"]] if exported and exported["format"] not in tags else []
    text = CARDS.get_template("model_card.md").render(
        name=without_controls(name),
        stage=stage,
        contract=contract,
        exported=exported,
        origin=origin,
        base=base,
        license=origin.license if origin else base_license(base),
        base_model=base if _is_hub_id(base) else None,
        sentence_transformers_folder=sentence_transformers_folder,
        tags=tags,
        release=release,
        model=f"{release.partition('/')[2].rpartition('-')[0]}/{role}" if release else None,
        report=report,
        scores=score_table(report) if report else [],
        speed_note=unreliable_speeds(report) if report else None,
        elsewhere=elsewhere_table(report) if report else [],
        verdict=verdict(report) if report else None,
        recipe=[(a.ref, _section_yaml(a)) for a in lineage if a.stage in ("teacher", "student")],
        data=_data_card(lineage),
    )
    (folder / README).write_text(text, encoding="utf-8")


def _base(contract: BaseContract) -> str:
    """What an encoder was made from, as its contract says."""
    return str(getattr(contract, "base", "several models"))


def artifact_of(model: str, store: Store) -> Artifact | None:
    """The artifact that a model's name refers to; None for other names."""
    if model.split("/")[0] in ("teacher", "student") and not Path(model).exists():
        return store.find(model)
    return None


def _lineage(artifact: Artifact, store: Store) -> Iterator[Artifact]:
    """The lineage of an artifact: inputs before their outputs; the artifact is last."""
    by_key = {artifact.key: artifact for artifact in store.list_artifacts()}
    seen: set[str] = set()

    def walk(current: Artifact) -> Iterator[Artifact]:
        seen.add(current.ref)
        for key in current.manifest["made_by"]["inputs"].values():
            if key in by_key and by_key[key].ref not in seen:
                yield from walk(by_key[key])
        yield current

    return walk(artifact)


def _newest_report(artifact: Artifact | None, store: Store) -> Mapping[str, Any] | None:
    if artifact is None:
        return None
    for report in store.list_artifacts("report"):
        if report.manifest["made_by"]["inputs"].get(artifact.stage) == artifact.key:
            folder = store.open(report.stage, report.name, report.key).path
            return _read_json(folder / "report.json")
    return None


def _data_card(lineage: list[Artifact]) -> str | None:
    """The data card of the corpus, its headings one level down."""
    for corpus in lineage:
        if corpus.stage == "corpus" and (corpus.path / "card.md").exists():
            text = (corpus.path / "card.md").read_text(encoding="utf-8")
            return re.sub(r"^#", "##", text.removeprefix("# Data card").strip(), flags=re.M)
    return None


def _is_hub_id(base: str) -> bool:
    return bool(HUB_ID.fullmatch(base)) and not Path(base).exists()


def base_license(base: str) -> str | None:
    """The license in the base's own model card; None where it says none."""
    try:
        card = (locate_model(base) / README).read_text(encoding="utf-8")
        license = yaml.safe_load(card.split("---")[1])["license"]
    except (UserError, OSError, IndexError, KeyError, TypeError, yaml.YAMLError):
        return None
    return str(license)


def _section_yaml(artifact: Artifact) -> str:
    section = artifact.manifest["made_by"]["section"]
    text = yaml.safe_dump(section, sort_keys=False, allow_unicode=True).strip()
    return without_controls(text)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
