"""`stillroom release create`: a release of models that were trained elsewhere."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.cli.app import (
    AsJson,
    Root,
    TrustRemoteCode,
    check_pooling,
    out,
    print_json,
    print_report,
    stdout_to_stderr,
)
from stillroom.cli.export import docstring_texts
from stillroom.errors import UserError
from stillroom.storage.root import ROOT_FOLDER

if TYPE_CHECKING:
    from stillroom.data.readers.records import EvaluationSet
    from stillroom.stages.release.stage import ReleaseManifest

Pooling = Annotated[
    str | None, typer.Option(help="If it is a plain model, which does not say how it pools.")
]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The release's name.")],
    floors: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Fields of a recipe's release section: floors such as mean_retention=0.9, "
            "exports=[onnx], playground=null.",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The large model, if there is one.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The small model, if there is one.")
    ] = None,
    gate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="SETS",
            help="Evaluation sets to measure on: a folder in BEIR layout, or a folder of such. "
            "May be given several times.",
        ),
    ] = None,
    teacher_pooling: Pooling = None,
    student_pooling: Pooling = None,
    trust_remote_code: TrustRemoteCode = False,
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Make a release of models that were trained elsewhere, to serve them together.

    A model is anything that `evaluate` takes. Whether both share a vector space is measured: their
    names say nothing. With --gate, both are measured as in a recipe's report, and a student below a
    floor makes no release.

    Example: stillroom release create mine --teacher intfloat/e5-mistral-7b-instruct --student
    ./my-student --gate my-sets mean_retention=0.9
    """
    from stillroom.config.load import read_fields
    from stillroom.config.recipe import Release

    if teacher is None and student is None:
        raise UserError("release create", "names no model", "Give --teacher, --student or both")
    named = {
        "teacher": (teacher, check_pooling(teacher_pooling, "--teacher-pooling")),
        "student": (student, check_pooling(student_pooling, "--student-pooling")),
    }
    section = read_fields(Release, floors or [], "release create")
    sets, sets_hash = _read_sets(gate or [])
    from stillroom.stages.release.external import create_release
    from stillroom.stages.release.given_models import GivenModel, check_section, creation_parts
    from stillroom.storage.artifacts import Store, key_of

    store = Store(root)
    given = {
        role: GivenModel.find(model, store, pooling)
        for role, (model, pooling) in named.items()
        if model is not None
    }
    check_section(section, given, sets)
    parts = creation_parts(section, given, sets_hash)
    with (
        stdout_to_stderr() if as_json else contextlib.nullcontext(),
        store.draft("release", name, key_of(parts)) as draft,
    ):
        made = draft.artifact is None
        if made:
            manifest = create_release(
                section=section,
                given=given,
                sets=sets,
                more_texts=docstring_texts(),
                trust_remote_code=trust_remote_code,
                out=draft,
            )
            draft.publish({**parts, "summary": {"gate": manifest["gate"]}})
        assert draft.artifact is not None
        folder = draft.artifact.path
    _print(folder, made, as_json)


def _read_sets(folders: list[Path]) -> "tuple[dict[str, EvaluationSet], str | None]":
    """The evaluation sets in folders by their names, and a hash of all files; None without any."""
    if not folders:
        return {}, None
    from stillroom.data.readers.beir import read_beir_sets
    from stillroom.data.readers.locations import content_hash

    sets: dict[str, EvaluationSet] = {}
    for folder in folders:
        for name, dataset in read_beir_sets(folder).items():
            if name in sets:
                raise UserError(
                    f"--gate {folder}", f"a set is named {name}, as another", "Rename one's folder"
                )
            sets[name] = dataset
    return sets, " ".join(content_hash(folder) for folder in folders)


def _print(release: Path, made: bool, as_json: bool) -> None:
    """Prints what the release is and how to serve it."""
    manifest: ReleaseManifest = json.loads((release / "release.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"release": manifest["ref"], "path": str(release), "made": made, **manifest})
        return
    out.print(f"{manifest['ref']}  {'made' if made else 'exists already'}", soft_wrap=True)
    for role, origin in manifest["origin"].items():
        out.print(f"  {role}: {origin['model']}, space {manifest['space'][role]}", soft_wrap=True)
    if manifest["measured"]:
        out.print(f"  By measurement, {manifest['measured']}.", soft_wrap=True)
    if manifest["report"]:
        print_report(json.loads((release / "report.json").read_text(encoding="utf-8")))
        out.print(f"Report: {release / 'report.html'}", soft_wrap=True)
    out.print(f"Serve it: stillroom serve {manifest['ref'].rpartition('-')[0]}")
