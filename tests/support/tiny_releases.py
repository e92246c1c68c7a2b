"""Releases of tiny models, as the pipeline leaves them."""

import json

from stillroom.encoders.files.create import create
from stillroom.encoders.files.save import save
from support.tiny_models import tiny_decoder, tiny_encoder

QUERY = {"query": "Instruct: find\nQuery: "}


def make_release(folder, *, shared_space, name="tiny"):
    models = folder.parent / f"{folder.name}-models"
    teacher = create(
        str(tiny_decoder(models / "decoder")), space="one", attention="bidirectional",
        pooling="mean", prompts=QUERY, precision="float32", max_tokens=64,
    )  # fmt: skip
    student = create(
        str(tiny_encoder(models / "encoder")), space="one" if shared_space else "two",
        pooling="mean", precision="float32", max_tokens=32,
    )  # fmt: skip
    save(teacher, folder / "teacher")
    save(student, folder / "student")
    content = {
        "name": name,
        "ref": f"release/{name}-0123456789ab",
        "models": {"teacher": "teacher", "student": "student"},
        "gate": {"passed": True, "failures": [], "overridden": False},
    }
    (folder / "release.json").write_text(json.dumps(content))
    return folder
