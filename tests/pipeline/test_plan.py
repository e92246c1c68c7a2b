import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from stillroom.config.load import read_recipe
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.errors import UserError
from stillroom.pipeline.explain import why_missing
from stillroom.pipeline.plan import pipeline
from stillroom.stages.report.models import student_section
from stillroom.storage.artifacts import Store
from support.tiny_models import tiny_decoder, tiny_encoder

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_decoder(folder / "teacher"), tiny_encoder(folder / "student")


@pytest.fixture
def plan(models):
    bases = [f"teacher.base={models[0]}", f"student.base={models[1]}"]

    def plan(*overrides):
        return pipeline(read_recipe(TINY, [*bases, *overrides]))

    return plan


def changed(before, after):
    return [new.stage for old, new in zip(before, after, strict=True) if old.key != new.key]


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("student.phases.0.learning_rate=5e-4", ["student", "report", "release"]),
        ("report.bm25=false", ["report", "release"]),
        ("release.mean_retention=0.1", ["release"]),
        ("negatives.skip_first=1", ["negatives", "student", "report", "release"]),
        ("vectors.shard_size=65", ["vectors", "negatives", "student", "report", "release"]),
        (
            "corpus.max_pairs=200",
            ["corpus", "teacher", "vectors", "negatives", "student", "report", "release"],
        ),
        ("scale.teacher.workers=1", []),
        ("scale.student.engine=deepspeed", []),
        ("root=elsewhere", []),
    ],
)
@pytest.mark.promise("pipeline")
def test_a_change_reaches_what_depends_on_it_and_nothing_else(plan, override, stages):
    assert changed(plan(), plan(override)) == stages


def test_a_release_without_the_gate_is_another_release():
    recipe = read_recipe(TINY)
    assert changed(pipeline(recipe), pipeline(recipe, gate=False)) == ["release"]


def test_other_weights_under_the_same_name_are_another_teacher(plan, models):
    before = plan()
    tiny_decoder(models[0], seed=9)
    assert changed(before, plan())[0] == "teacher"


def test_other_miners_add_their_vectors_and_change_only_the_negatives(plan, models):
    before = plan()
    steps = plan(f"negatives.miner=[bm25, base, {models[1]}]")
    added = [step for step in steps if step.key not in {known.key for known in before}]
    assert [(step.stage, step.name) for step in added] == [
        ("teacher", "tiny-base"),
        ("vectors", "tiny-base"),
        ("vectors", "tiny-miner2"),
        ("negatives", "tiny"),
        ("student", "tiny"),
        ("report", "tiny"),
        ("release", "tiny"),
    ]
    base, base_vectors, miner_vectors, negatives, *_ = added
    assert base.args["phase"] is None and base_vectors.inputs["teacher"] is base
    assert set(miner_vectors.inputs) == {"corpus"}
    assert negatives.inputs == {
        "corpus": steps[0], "vectors_1": base_vectors, "vectors_2": miner_vectors,
    }  # fmt: skip
    tiny_encoder(models[1], seed=9)
    again = plan(f"negatives.miner=[bm25, base, {models[1]}]")
    assert "vectors" in changed(steps, again)


def test_a_miner_of_several_phases_embeds_the_corpus_once(plan):
    phases = f'teacher.phases=[{PHASE}, "hard_negatives": 1}}, {PHASE}, "hard_negatives": 1}}]'
    steps = plan(phases, "negatives.miner=base")
    assert [(step.stage, step.name) for step in steps[:6]] == [
        ("corpus", "tiny"),
        ("teacher", "tiny-base"),
        ("vectors", "tiny-base"),
        ("negatives", "tiny-phase0"),
        ("teacher", "tiny-phase1"),
        ("negatives", "tiny-phase1"),
    ]
    with pytest.raises(UserError, match="its model is not trained yet"):
        plan(phases)


PHASE = '{"objective": "contrastive", "steps": 2, "global_batch": 16, "learning_rate": 1e-3'


def test_a_phase_with_hard_negatives_has_them_mined_by_the_phase_before(plan):
    steps = plan(f'teacher.phases=[{PHASE}}}, {PHASE}, "hard_negatives": 1}}]')
    assert [(step.stage, step.name) for step in steps[:5]] == [
        ("corpus", "tiny"),
        ("teacher", "tiny-phase1"),
        ("vectors", "tiny-phase1"),
        ("negatives", "tiny-phase1"),
        ("teacher", "tiny"),
    ]
    second = steps[4]
    assert second.inputs["negatives"] is steps[3]
    assert second.inputs["teacher"] is steps[1]


def test_a_phase_with_provided_negatives_needs_no_mining(plan):
    provided = '"hard_negatives": 1, "negatives": "given"'
    steps = plan(f"teacher.phases=[{PHASE}, {provided}}}, {PHASE}, {provided}}}]")
    assert [(step.stage, step.name) for step in steps[:3]] == [
        ("corpus", "tiny"),
        ("teacher", "tiny-phase1"),
        ("teacher", "tiny"),
    ]
    assert set(steps[2].inputs) == {"corpus", "teacher"}


def test_phases_of_every_objective_are_named_by_number_and_keyed_by_their_fields(plan):
    numbers = '"steps": 2, "global_batch": 16, "learning_rate": 1e-3'

    def phases(mask_probability):
        return plan(
            f'teacher.phases=[{{"objective": "mntp", "mask_probability": {mask_probability}, '
            f"{numbers}}}, "
            f'{{"objective": "simcse", {numbers}}}, '
            f'{{"objective": "joint", "generation_batch": 16, "generation_data": "pairs", '
            f"{numbers}}}]"
        )

    steps = phases(0.2)
    teachers = [step for step in steps if step.stage == "teacher"]
    assert [step.name for step in teachers] == ["tiny-phase1", "tiny-phase2", "tiny"]
    assert [step.args["phase"].objective for step in teachers] == ["mntp", "simcse", "joint"]
    assert teachers[2].inputs["teacher"] is teachers[1]
    assert [step.stage for step in steps[:4]] == ["corpus", "teacher", "teacher", "teacher"]
    assert changed(steps, phases(0.3)) == [step.stage for step in steps[1:]]


# --- sources --------------------------------------------------------------------------------


@pytest.fixture
def plan_sources(plan, tmp_path):
    """Plans a recipe whose sources have one file each: name=kind of content."""

    def plan_sources(**sources):
        named = []
        for name, kind in sources.items():
            file = tmp_path / f"{name}.jsonl"
            if not file.exists():
                file.write_text(f'{{"query": "{name}", "positive": "p"}}\n')
            named.append(f'{name}: {{"format": "files", "{kind}": ["{file}"]}}')
        return plan(f"corpus.sources={{{', '.join(named)}}}", "teacher.phases=[]")

    return plan_sources


@pytest.mark.parametrize("kind", ["pairs", "passages", "conversations"])
def test_other_content_of_a_source_changes_the_corpus_and_all_after_it(
    plan_sources, tmp_path, kind
):
    before = plan_sources(first="pairs", second=kind)
    assert changed(before, plan_sources(first="pairs", second=kind)) == []
    (tmp_path / "second.jsonl").write_text("of other content, which a plan does not read")
    after = plan_sources(first="pairs", second=kind)
    # The teacher is its untrained base, so the corpus does not change it.
    assert changed(before, after) == [step.stage for step in before if step.stage != "teacher"]
    old, new = before[0].sources, after[0].sources
    assert [name for name in new if new[name] != old[name]] == [f"{tmp_path}/second.jsonl"]


def test_the_order_of_sources_is_part_of_the_key(plan_sources):
    steps = plan_sources(first="pairs", second="pairs")
    swapped = plan_sources(second="pairs", first="pairs")
    assert steps[0].key != swapped[0].key


def test_the_error_of_a_missing_source_file_names_it(plan, tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: does not exist"):
        plan(f'corpus.sources.own={{"format": "files", "pairs": ["{tmp_path}/none.jsonl"]}}')


def test_a_student_s_phases_form_a_chain_and_have_only_the_inputs_that_they_need(plan):
    numbers = "steps: 1, global_batch: 4, learning_rate: 1e-3"
    texts = f"{{data: texts, losses: {{pairwise_mse: 1}}, online_teacher: true, {numbers}}}"
    pairs = f"{{data: pairs, {numbers}, hard_negatives: 0}}"
    steps = plan(f"student.phases=[{texts}, {pairs}]")
    first, second = (step for step in steps if step.stage == "student")
    assert [first.name, second.name] == ["tiny-phase1", "tiny"]
    assert set(first.inputs) == {"corpus", "teacher"}  # the teacher embeds while the student trains
    assert set(second.inputs) == {"corpus", "teacher", "vectors", "student"}
    assert second.inputs["student"] is first
    assert "negatives" not in {step.stage for step in steps}
    other = plan(f"student.phases=[{texts}, {pairs}]", "vectors.shard_size=65")
    assert changed(steps, other) == [
        "vectors", "student", "report", "release",
    ]  # fmt: skip


def test_the_first_phase_knows_that_a_later_one_distils_the_base(plan):
    numbers = "steps: 1, global_batch: 4, learning_rate: 1e-3"
    pairs = f"{{data: pairs, {numbers}, hard_negatives: 0, losses: {{score_kl: 1}}}}"
    phases = [f"student.phases=[{pairs}, {{data: texts, target: base, {numbers}}}]"]
    for options, told in (([*phases, "student.space=teacher"], True), ([], None)):
        steps = [step for step in plan(*options) if step.stage == "student"]
        assert {step.args.get("base_teaches") for step in steps} == {told}


def test_a_phase_is_told_which_texts_it_rehearses_and_depends_on_them(plan):
    numbers = "steps: 1, global_batch: 4, learning_rate: 1e-3"
    pairs = f"{{data: pairs, {numbers}, hard_negatives: 0, rehearsal_batch: 2}}"

    def students(passage_tokens):
        texts = f"{{data: texts, {numbers}, passage_tokens: {passage_tokens}}}"
        steps = plan("student.space=teacher", f"student.phases=[{texts}, {pairs}]")
        return [step for step in steps if step.stage == "student"]

    first, second = students(32)
    assert "rehearsed" not in first.args
    rehearsed = second.args["rehearsed"]
    assert (rehearsed.passage_tokens, rehearsed.global_batch) == (32, 2)
    assert students(48)[1].key != second.key


@pytest.mark.parametrize("recipe", ["tiny", "quickstart", "student-6", "student-3"])
def test_a_report_reads_from_a_student_s_manifest_how_it_was_made(plan, recipe):
    student = OmegaConf.to_container(OmegaConf.load(TINY.parent / f"{recipe}.yaml"))["student"]
    phases, space = student["phases"], student.get("space", "own")
    steps = plan(f"student.space={space}", f"student.phases={json.dumps(phases)}")
    *_, last = (step for step in steps if step.stage == "student")
    manifest = {"made_by": json.loads(json.dumps(last.made_by))}
    section = student_section(SimpleNamespace(path=Path("student"), manifest=manifest))
    assert section.phases[-1] == last.args["phase"]
    assert section.model_copy(update={"phases": ()}) == last.args["section"]


def test_why_missing_names_the_fields_and_inputs_that_changed(plan, tmp_path):
    store = Store(str(tmp_path))
    student = next(step for step in plan() if step.stage == "student")
    assert why_missing(student, store) == "not made yet"
    with store.draft("student", student.name, student.key) as draft:
        draft.publish(json.loads(json.dumps(student.made_by)))
    faster = plan("student.phases.0.learning_rate=5e-4", "negatives.skip_first=1")
    reason = why_missing(next(step for step in faster if step.stage == "student"), store)
    assert "student.phase.learning_rate: 0.001 → 0.0005" in reason
    assert "negatives changed" in reason
    assert "vectors" not in reason


TEXTS = "corpus.texts={general: 100, sources: [packages]}"


def test_only_the_student_s_teacher_embeds_general_texts(plan):
    steps = plan(f'teacher.phases=[{PHASE}}}, {PHASE}, "hard_negatives": 1}}]', TEXTS)
    embedded = {step.name: step.args.get("general") for step in steps if step.stage == "vectors"}
    assert embedded == {"tiny-phase1": None, "tiny": True}


def test_a_corpus_depends_on_what_general_texts_are_gathered_from(plan, monkeypatch):
    before = plan(TEXTS)
    assert "texts" in before[0].sources and "texts" not in plan()[0].sources
    monkeypatch.setattr("stillroom.pipeline.sources.machine_fingerprint", lambda sources: "other")
    assert changed(before, plan(TEXTS))[0] == "corpus"


def test_a_corpus_depends_on_the_guards_that_its_recipe_names(plan, tmp_path):
    guards = tmp_path / "guards"
    write_beir(EvaluationSet({"p": "one"}, {"q": "two"}, {"q": {"p": 1}}), guards / "one")
    before = plan(f"evaluation.guards={guards}")
    write_beir(EvaluationSet({"p": "three"}, {"q": "two"}, {"q": {"p": 1}}), guards / "one")
    assert changed(before, plan(f"evaluation.guards={guards}"))[0] == "corpus"
    with pytest.raises(UserError, match="does not exist"):
        plan("evaluation.guards=nowhere")


def test_a_floor_on_other_fields_needs_sets_of_them(plan):
    with pytest.raises(UserError, match=r"release.elsewhere.of_teacher needs sets"):
        plan("release.elsewhere.of_teacher=0.9")
    plan("release.elsewhere.of_teacher=0.9", "evaluation.made_guards.sets=1")


def test_only_phases_on_texts_may_mix_general_texts(plan):
    texts = (
        '{"data": "texts", "steps": 2, "global_batch": 16, "learning_rate": 1e-3, '
        '"losses": {"pairwise_mse": 1}, "mix": {"general": 1}}'
    )
    plan(TEXTS, f"student.phases=[{texts}]")
    with pytest.raises(UserError, match="'general', which is not a source"):
        plan(f"student.phases=[{texts}]")
    with pytest.raises(UserError, match="'general', which is not a source"):
        plan(TEXTS, "student.phases.0.mix={general: 1}")
    with pytest.raises(UserError, match="no source may be named 'general'"):
        plan(TEXTS, "corpus.sources={general: {format: docstrings, packages: [numpy]}}")
