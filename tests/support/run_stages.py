"""Runs single stages of a recipe's plan, without the journal and the progress of a whole run."""

from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import stage_function
from stillroom.storage.artifacts import Store


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
