"""Teacher vectors of a corpus whose sources have prompts of their own."""

import json

import numpy as np
import pytest
import ray

from stillroom.artifacts import Store
from stillroom.config.corpus import Corpus
from stillroom.config.recipe import Vectors
from stillroom.config.scale import Actors, Scale
from stillroom.encoders.store import create, load, save
from stillroom.encoders.vectors import StoredVectors
from stillroom.stages.corpus import CorpusFiles, corpus
from stillroom.stages.vectors import vectors
from stillroom.text.formats import EvaluationSet, write_beir

PROMPTS = {"query": "Instruct: Find it\nQuery: ", "passage": "Found: "}


@pytest.fixture
def cluster():
    ray.init("local", num_cpus=1, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


def test_a_text_is_embedded_with_the_prompt_of_its_source(cluster, decoder, tmp_path):
    named = {}
    for name in ("own", "other"):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"query": f"{name} {i}?", "positive": f"{name} " * (i + 1)} for i in range(5)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        named[name] = {"format": "files", "pairs": [str(file)]}
    named["other"]["prompts"] = PROMPTS
    write_beir(EvaluationSet({"p": "a"}, {"q": "b"}, {"q": {"p": 1}}), tmp_path / "set")
    content = {"sources": named, "evaluation": {"set": str(tmp_path / "set")}}
    section = Corpus.model_validate_json(json.dumps(content))
    store = Store(str(tmp_path / "runs"))
    with store.draft("corpus", "two", "k") as draft:
        corpus(section=section, seed=0, scale=Scale(), out=draft)
        texts = draft.publish({})
    with store.draft("teacher", "two", "k") as draft:
        own = {"query": "Query: ", "passage": ""}
        encoder = create(
            str(decoder), space="two", pooling="mean", prompts=own, precision="float32"
        )
        save(encoder, draft.path)
        teacher = draft.publish({})
    with store.draft("vectors", "two", "k") as draft:
        scale = Scale(vectors=Actors(actors=1))
        vectors(section=Vectors(shard=4), corpus=texts, teacher=teacher, scale=scale, out=draft)
        made = draft.publish({})
        queries, passages = (StoredVectors(made.path / one) for one in ("queries", "passages"))
    with store.draft("vectors", "two-miner0", "k") as draft:
        # Another model, by an artifact's reference: it was told no task, and has its own prompts.
        vectors(section=Vectors(), corpus=texts, model="teacher/two", scale=Scale(), out=draft)
        others = StoredVectors(draft.publish({}).path / "queries")
    files, encoder = CorpusFiles.read(texts), load(teacher.path)
    expected = [encoder.encode([text], "query")[0] for text in files.queries]
    np.testing.assert_allclose(others[np.arange(len(expected))], expected, atol=1e-3)
    for role, found, of, source in (
        ("query", queries, files.queries, files.source),
        ("passage", passages, files.passages, files.passage_source),
    ):
        # One text after the other: the slow way.
        expected = [
            encoder.encode([text], role, prompt=PROMPTS[role] if number else own[role])[0]
            for text, number in zip(of, source, strict=True)
        ]
        np.testing.assert_allclose(found[np.arange(len(of))], expected, atol=1e-3)
