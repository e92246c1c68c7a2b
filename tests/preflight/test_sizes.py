"""`stillroom check --texts`: a recipe's bytes, memory and hours for a number of texts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app, out
from stillroom.config.load import read_recipe
from stillroom.errors import UserError
from stillroom.estimates.stage_sizes import ENCODING_ACTOR, TRAINING_WORKER
from stillroom.preflight.sizes import estimate_sizes
from stillroom.preflight.text_sample import ASSUMED_PASSAGE_BYTES, sample_texts

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"
CORE_FLOPS = 1e11


@pytest.fixture
def pairs(tmp_path):
    """Overrides that name a file of pairs with a negative each, and one of passages."""
    rows = [{"query": "q" * 30, "positive": "p" * 100, "negatives": ["n" * 100]} for _ in range(50)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "passages.jsonl").write_text(json.dumps({"text": "p" * 100}) + "\n")
    return [
        f"corpus.sources={{made: {{format: files, pairs: [{tmp_path}/pairs.jsonl], "
        f"passages: [{tmp_path}/passages.jsonl]}}}}"
    ]


@pytest.fixture
def read(pairs):
    def read(*overrides):
        return read_recipe(str(TINY), [*pairs, *overrides])

    return read


def sizes(recipe, texts=1_000_000):
    return estimate_sizes(recipe, texts, core_flops=CORE_FLOPS)


def stage(estimate, what):
    (match,) = (each for each in estimate.stages if each.what == what)
    return match


def test_texts_are_divided_as_in_a_sample_of_the_sources(read):
    corpus = sample_texts(read()).of_texts(30_000)
    assert corpus.texts == 30_000
    assert corpus.pairs == pytest.approx(10_000, rel=0.02)  # a third queries; few other passages
    assert corpus.negatives == corpus.pairs
    assert (corpus.query_bytes, corpus.passage_bytes) == pytest.approx((30, 100))


def test_a_sample_that_cannot_be_read_is_assumed_and_said_so(read, tmp_path):
    sample = sample_texts(read(f"corpus.sources.made.pairs=[{tmp_path}/none.jsonl]"))
    assert sample.passage_bytes == ASSUMED_PASSAGE_BYTES
    assert sample.basis.startswith("assumed") and "none.jsonl" in sample.basis


def test_every_stage_has_bytes_that_grow_with_the_texts_or_with_the_models(read):
    few, many = sizes(read()), sizes(read(), 10_000_000)
    for what in ("corpus", "vectors", "negatives"):
        assert stage(many, what).stored == pytest.approx(10 * stage(few, what).stored, rel=1e-4)
    for what in ("teacher.phases[0]", "student.phases[0]", "release"):
        assert stage(many, what).stored == stage(few, what).stored > 0
    assert many.stored == sum(each.stored for each in many.stages) < many.most_at_once


def test_vectors_are_of_the_teacher_s_width_once_for_every_model_that_mines(read):
    plain = stage(sizes(read()), "vectors")
    assert plain.stored == 1_000_000 * (2 * 64 + 48)
    with_base = stage(sizes(read("negatives.miner=[teacher, base]")), "vectors")
    assert with_base.stored == 2 * plain.stored


def test_scale_decides_processes_and_a_gpu_takes_the_model_out_of_main_memory(read):
    on_cpu = sizes(read("scale.vectors.actors=3"))
    assert stage(on_cpu, "vectors").processes == {"actor": 3}
    assert stage(on_cpu, "vectors").memory["actor"] > ENCODING_ACTOR
    on_gpu = sizes(read("scale.vectors.gpus=1", "scale.student.gpus=1"))
    assert stage(on_gpu, "vectors").memory["actor"] == ENCODING_ACTOR
    assert stage(on_gpu, "student.phases[0]").memory["worker"] == TRAINING_WORKER


def test_a_remote_root_needs_disks_for_drafts_and_copies_and_a_local_one_does_not(read, tmp_path):
    local, remote = (sizes(read(f"root={root}")) for root in (tmp_path, "s3://no-such-bucket/runs"))
    assert [local.copies(each) for each in local.stages] == [0.0] * len(local.stages)
    student = stage(remote, "student.phases[0]")
    read_by_student = ("corpus", "teacher.phases[0]", "vectors", "negatives")
    assert remote.copies(student) == sum(stage(remote, what).stored for what in read_by_student)
    vectors = stage(remote, "vectors")
    assert remote.driver_disk(vectors) == remote.copies(vectors) + vectors.stored + vectors.local
    assert remote.stored == local.stored
    document = remote.as_json()
    assert document["root"] == "object storage"
    assert document["stages"][1]["disk_of_other_nodes"] == document["stages"][0]["stored"]


def test_hours_are_arithmetic_divided_by_speed_or_say_what_is_missing(read):
    once, twice = (
        estimate_sizes(read(), 1_000_000, core_flops=flops).hours for flops in (1e11, 2e11)
    )
    for what in ("vectors", "negatives", "student.phases[0]"):
        assert once[what].value == pytest.approx(2 * twice[what].value) and once[what].value > 0
    on_gpu = sizes(read("scale.vectors.gpus=1", "scale.negatives.gpus=1")).hours
    assert on_gpu["vectors"].value is None and "gpu_type" in on_gpu["vectors"].basis
    assert on_gpu["negatives"].value is None and "not measured" in on_gpu["negatives"].basis
    lists = sizes(read("negatives.ivf={min_passages: 1000}")).hours["negatives"]
    assert lists.value < once["negatives"].value


def test_an_unknown_architecture_is_named_and_counts_as_nothing(read, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    estimate = sizes(read(f"teacher.base={tmp_path}", "teacher.phases=[]"))
    assert estimate.unknown == (str(tmp_path),)
    assert estimate.hours["vectors"].value is None


def test_a_number_of_texts_that_no_corpus_has_is_refused(read):
    with pytest.raises(UserError) as error:
        sizes(read(), 0)
    assert error.value.where == "--texts 0"


def test_the_command_prints_a_table_or_a_document(pairs, monkeypatch):
    monkeypatch.setattr(out, "width", 200)
    words = ["check", str(TINY), *pairs, "--texts", "1000000"]
    table = CliRunner().invoke(app, words)
    assert table.exit_code == 0, table.output
    for text in ("student.phases[0]", "on one node", "queries of 30 bytes", "GFLOP/s"):
        assert text in table.output
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["sizes"]
    assert document["texts"]["pairs"] == pytest.approx(333_000, rel=0.02)
    assert {"what", "stored", "temporary", "memory", "hours"} <= {*document["stages"][0]}
