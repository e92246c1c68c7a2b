"""`stillroom vectors`: a teacher's vectors, made by one team and reused by another."""

from typing import Annotated

import typer

from stillroom.cli.app import AsJson, Root, out, print_json
from stillroom.storage.root import ROOT_FOLDER


def publish(
    vectors: Annotated[
        str, typer.Argument(metavar="VECTORS", help="Such as vectors/quickstart: the newest one.")
    ],
    to: Annotated[str, typer.Option(help="Where others read: a folder, or s3:// or gs://.")],
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Publish a teacher's vectors, for others to import.

    They go with digests of their texts, checksums and the teacher's contract; no text does. Who has
    a text can tell by its digest whether it is among them.

    Example: stillroom vectors publish vectors/quickstart --to s3://BUCKET/vectors
    """
    from stillroom.stages.vectors.shared import publish_vectors
    from stillroom.storage.artifacts import Store

    shared = publish_vectors(Store(root).find(vectors), Store(to))
    if as_json:
        print_json({"ref": shared.artifact.ref, "teacher": shared.teacher, "texts": shared.texts})
        return
    done = "published" if shared.copied else "was published before"
    out.print(
        f"{shared.artifact.ref}: {shared.texts:,} texts of teacher {shared.teacher}, {done}",
        soft_wrap=True,
    )
    out.print(f"Import it: stillroom vectors import {to}", soft_wrap=True)


def import_(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="The folder or URI that was published to.")
    ],
    root: Root = ROOT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Import published vectors; runs of the same teacher then encode only other texts.

    Vectors of another teacher change nothing: a run takes those of its own teacher's identity.

    Example: stillroom vectors import s3://BUCKET/vectors
    """
    from stillroom.stages.vectors.shared import import_vectors, known_teachers
    from stillroom.storage.artifacts import Store

    store = Store(root)
    imported, known = import_vectors(Store(source), store), known_teachers(store)
    if as_json:
        rows = [
            {
                "ref": shared.artifact.ref,
                "teacher": shared.teacher,
                "texts": shared.texts,
                "copied": shared.copied,
                "used_by": known.get(shared.teacher),
            }
            for shared in imported
        ]
        print_json({"imported": rows})
        return
    for shared in imported:
        done = "imported" if shared.copied else "was imported before"
        out.print(
            f"{shared.artifact.ref}: {shared.texts:,} texts of teacher {shared.teacher}, {done}",
            soft_wrap=True,
        )
        of = known.get(shared.teacher)
        line = (
            f"used for {of}" if of else f"not used so far: no teacher under {root} is known as it"
        )
        out.print(f"    {line}", soft_wrap=True)
