"""Releases of tiny models, as the pipeline leaves them."""

import json

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from support.tiny_models import tiny_decoder, tiny_encoder

QUERY_PROMPT = {"query": "Instruct: find\nQuery: "}


def make_release(folder, *, shared_space, name="tiny", similarity=None):
    """Writes a release of a tiny teacher and a tiny student; returns its folder."""
    models = folder.parent / f"{folder.name}-models"
    teacher = create_encoder(
        str(tiny_decoder(models / "decoder")),
        space="one",
        options=ContractOptions(
            attention="bidirectional",
            pooling="mean",
            prompts=QUERY_PROMPT,
            precision="float32",
            max_tokens=64,
            similarity=similarity,
        ),
    )
    named = {"find_code": "Instruct: find code\nQuery: "}
    teacher.contract = teacher.contract.model_copy(update={"named_prompts": named})
    student = create_encoder(
        str(tiny_encoder(models / "encoder")),
        space="one" if shared_space else "two",
        options=ContractOptions(
            pooling="mean", precision="float32", max_tokens=32, similarity=similarity
        ),
    )
    save_encoder(teacher, folder / "teacher")
    save_encoder(student, folder / "student")
    content = {
        "name": name,
        "ref": f"release/{name}-0123456789ab",
        "models": {"teacher": "teacher", "student": "student"},
        "gate": {"passed": True, "failures": [], "overridden": False},
    }
    (folder / "release.json").write_text(json.dumps(content))
    return folder
