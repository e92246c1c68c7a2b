"""Runs single stages of a recipe's plan, without the journal and the progress of a whole run."""

import contextlib
import json
from unittest import mock

from stillroom.config.corpus import Corpus
from stillroom.config.scale import Scale
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import stage_function
from stillroom.stages.corpus.stage import corpus
from stillroom.storage.artifacts import Store


@contextlib.contextmanager
def embedding_in_process():
    """Inside, the stage `vectors` encodes in this process, as it does where the teacher is an API.

    The actors that it has otherwise take seconds to start.
    """

    def teacher_encoder(teacher, scale, store):
        return load_encoder(teacher)

    with mock.patch("stillroom.stages.vectors.stage.api_encoder", teacher_encoder):
        yield


def publish_corpus(store, name, content):
    """The artifact of a corpus with this section of a recipe."""
    with store.draft("corpus", name, "k") as draft:
        section = Corpus.model_validate_json(json.dumps(content))
        corpus(section=section, seed=0, scale=Scale(), out=draft)
        return draft.publish({})


def publish_teacher(store, name, encoder):
    """The artifact of a teacher that is this encoder."""
    with store.draft("teacher", name, "k") as draft:
        save_encoder(encoder, draft.path)
        return draft.publish({})


def run_stages(recipe, *stages):
    """Runs the named stages of the plan; returns stage → artifact."""
    store, artifacts = Store(recipe.root), {}
    for step in pipeline(recipe, gate=False):
        if step.stage in stages:
            inputs = {role: artifacts[source.stage] for role, source in step.inputs.items()}
            with store.draft(step.stage, step.name, step.key) as draft:
                if draft.artifact is None:
                    stage_function(step.stage)(**step.args, **inputs, scale=recipe.scale, out=draft)
                artifacts[step.stage] = draft.artifact or draft.publish(step.made_by)
    return artifacts
