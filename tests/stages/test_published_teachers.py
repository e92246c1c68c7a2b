"""Published embedders as they are, as teachers: their vectors, mined negatives and a student."""

import contextlib
import json

import numpy as np
import pytest

from stillroom.config.load import read_recipe
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.stages.corpus.artifact import CorpusData
from support.published_folders import OWN_CODE, PUBLISHED, STATIC, write_any
from support.run_stages import embedding_in_process, run_stages

STAGES = ("corpus", "teacher", "vectors", "negatives", "student")


@pytest.fixture
def recipe(encoder, tmp_path):
    """Reads a recipe that distils a teacher as it is into a tiny BERT in two steps."""
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}. " * (1 + i % 3)} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    phase = {"data": "pairs", "steps": 2, "global_batch": 4, "learning_rate": 1e-4}

    def read(teacher, similarity):
        losses = {"cosine": 1.0, "score_kl": 1.0} if similarity == "cosine" else {"score_kl": 1.0}
        content = {
            "root": str(tmp_path / "runs"),
            "corpus": {
                "sources": {"own": {"format": "files", "pairs": [str(tmp_path / "pairs.jsonl")]}},
                "held_out": {"queries": 4, "passages": 8},
            },
            "teacher": {**teacher, "phases": []},
            "vectors": {"shard_size": 16},
            "negatives": {"sample_from": 2, "per_query": 1, "max_share_of_positive": None},
            "student": {
                "base": str(encoder),
                "pooling": "mean",
                "space": "teacher",
                "phases": [{**phase, "hard_negatives": 1, "losses": losses}],
            },
        }
        (tmp_path / "tiny.yaml").write_text(json.dumps(content))
        return read_recipe(tmp_path / "tiny.yaml")

    return read


@pytest.mark.full
@pytest.mark.parametrize("name", [*PUBLISHED, *OWN_CODE, *STATIC])
def test_a_published_model_is_distilled_as_it_is(ray_cluster, recipe, tmp_path, name):
    folder = write_any(name, tmp_path / "model")
    trusted = name in OWN_CODE
    teacher = {"base": str(folder), "precision": "float32", "trust_remote_code": trusted}
    similarity = {**PUBLISHED, **OWN_CODE, **STATIC}[name].similarity
    # Only actors have to be told which code is trusted; starting them takes seconds.
    with contextlib.nullcontext() if trusted else embedding_in_process():
        artifacts = run_stages(recipe(teacher, similarity), *STAGES)
    published = load_encoder(folder, trust_remote_code=trusted)
    texts = CorpusData.open(artifacts["corpus"])
    for role, values in (("query", texts.queries), ("passage", texts.passages)):
        kind = "queries" if role == "query" else "passages"
        stored = StoredVectors(artifacts["vectors"].path / kind)[np.arange(len(values))]
        expected = published.encode(values, role)
        np.testing.assert_allclose(stored, expected, atol=2e-3 * np.abs(expected).max())
    contract = BaseContract.read(artifacts["student"].path)
    assert contract.similarity == published.contract.similarity
    student = load_encoder(artifacts["student"].path)
    assert np.isfinite(student.encode(["a text"], "query")).all()
    losses = (artifacts["student"].path / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in losses) and len(losses) == 2
