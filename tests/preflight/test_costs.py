"""`stillroom check --cost`: exact arithmetic on a known shape, and errors about bad input."""

import json
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app, out
from stillroom.config.load import read_recipe
from stillroom.errors import UserError
from stillroom.estimates.flops import FlopCounter, peak_flops, step_flops
from stillroom.estimates.memory import GPU_MEMORY_GIB, TrainingSetup
from stillroom.estimates.model_shape import model_shape
from stillroom.preflight.costs import MFU, estimate_costs

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
MISTRAL = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
MINILM = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536,
    "num_hidden_layers": 6, "num_attention_heads": 12, "max_position_embeddings": 512,
}  # fmt: skip
# Weights of its linear layers: q and o 4096², k and v 4096 · 1024, the MLP 3 · 4096 · 14336.
LINEAR = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
LORA = 32 * 16 * (2 * 8192 + 2 * (4096 + 1024) + 3 * (4096 + 14336))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Overrides whose bases are folders that hold only a config.json."""
    overrides = []
    for role, config in (("teacher", MISTRAL), ("student", MINILM)):
        folder = tmp_path_factory.mktemp(role)
        (folder / "config.json").write_text(json.dumps(config))
        overrides.append(f"{role}.base={folder}")
    return overrides


@pytest.fixture(scope="module")
def read(bases):
    def read(name, *overrides):
        return read_recipe(RECIPES / f"{name}.yaml", [*bases, *overrides])

    return read


def part(estimate, what):
    (match,) = (row for row in estimate.parts if row.what == what)
    return match


def test_the_flops_of_training_e5_mistral_are_the_product_of_its_numbers(read):
    estimate = estimate_costs(read("e5-mistral-7b"))
    texts = 2048 * (1 + 2)  # a query, its positive and one negative, of 512 tokens each
    scored = 32 * 512**2 * 4096
    text_flops = 512 * (4 * LINEAR + 6 * LORA) + 12 * scored
    phase = part(estimate, "teacher.phases[0]")
    assert phase.flops == 879 * texts * text_flops
    assert (phase.gpus, estimate.gpu, estimate.mfu) == (8, "H100-80G", MFU)
    assert estimate.hours(phase) == pytest.approx(879 * texts * text_flops / (989e12 * MFU) / 3600)


def test_the_number_of_workers_does_not_change_gpu_hours(read):
    one_worker, eight_workers = (
        estimate_costs(read("e5-mistral-7b", f"scale.teacher.workers={n}")) for n in (1, 8)
    )
    one_phase, eight_phase = (
        part(estimate, "teacher.phases[0]") for estimate in (one_worker, eight_workers)
    )
    assert one_phase.flops == eight_phase.flops
    assert [one_phase.gpus, eight_phase.gpus] == [1, 8]


def test_cost_is_gpu_hours_times_each_provider_s_on_demand_and_spot_price(read):
    report = estimate_costs(read("e5-mistral-7b"), mfu=0.5, texts=1000).as_json()
    hours = sum(row["gpu_hours"] for row in report["parts"] if row["gpu_hours"] is not None)
    assert report["total"]["gpu_hours"] == pytest.approx(hours)
    for price in report["prices"]["per_gpu_hour"]:
        for kind in ("on_demand", "spot"):
            cost = report["total"]["cost"][price["provider"]][kind]
            assert cost == round(hours * price[kind], 2)
    (phase,) = (row for row in report["parts"] if row["what"] == "teacher.phases[0]")
    assert phase["hours"] == pytest.approx(phase["gpu_hours"] / 8)


def test_twice_the_mfu_halves_the_hours(read):
    recipe = read("nv-embed-v2-7b")
    assert estimate_costs(recipe, mfu=0.4).total == pytest.approx(
        estimate_costs(recipe, mfu=0.2).total / 2
    )


def test_the_corpus_is_embedded_once_for_every_teacher_that_mines_negatives(read):
    text_flops = FlopCounter.planned(model_shape(MISTRAL), TrainingSetup()).forward([512])
    plain = estimate_costs(read("e5-mistral-7b"), texts=1000)
    assert part(plain, "vectors").flops == 1000 * text_flops
    # The last teacher, which mines the student's negatives, embeds the corpus anyway; the base
    # does not.
    with_base = estimate_costs(read("e5-mistral-7b", "negatives.miner=[teacher, base]"), texts=1000)
    assert part(with_base, "vectors").flops == 2 * 1000 * text_flops
    mined = estimate_costs(
        read("gecko-style", "scale.teacher.gpu_type=H100-80G", "scale.teacher.gpus=1")
    )
    assert part(mined, "vectors").why == "--texts is not given"


def test_a_student_trains_every_weight_and_an_online_teacher_adds_its_forwards(read):
    small, large = model_shape(MINILM), model_shape(MISTRAL)
    run = TrainingSetup(embedded=((128, 64), (128 * 2, 128)))
    offline = estimate_costs(read("e5-mistral-7b"))
    assert part(offline, "student.phases[0]").flops == 20000 * 8 * step_flops(small, run)
    online = estimate_costs(read("e5-mistral-7b", "student.phases.0.online_teacher=true"))
    teacher_flops = 20000 * 1024 * 3 * FlopCounter.planned(large, TrainingSetup()).forward([512])
    assert (
        part(online, "student.phases[0]").flops
        == 20000 * 8 * step_flops(small, run) + teacher_flops
    )


def test_rehearsed_texts_cost_their_steps_and_the_base_that_embeds_them(read):
    numbers = "steps: 100, global_batch: 1024, learning_rate: 1e-3"
    texts = f"{{data: texts, target: base, {numbers}}}"
    pairs = f"{{data: pairs, {numbers}, rehearsal_batch: 512, losses: {{cosine: 1}}}}"
    costs = estimate_costs(read("e5-mistral-7b", f"student.phases=[{texts}, {pairs}]"))
    small = model_shape(MINILM)
    run = TrainingSetup(embedded=((128, 64), (128 * 2, 128), (64, 128)))
    by_base = 100 * 512 * FlopCounter.planned(small, TrainingSetup()).forward([512])
    expected = 100 * 8 * step_flops(small, run) + by_base
    assert part(costs, "student.phases[1]").flops == pytest.approx(expected)


def test_work_on_cpus_and_unknown_costs_are_reported_but_not_counted(read):
    estimate = estimate_costs(
        read("e5-mistral-7b", "scale.student.gpus=0", "teacher.precision=float32")
    )
    assert estimate.hours(part(estimate, "student.phases[0]")) is None
    assert part(estimate, "teacher.phases[0]").why == "trains in float32, whose speed is unknown"
    assert part(estimate, "report").why == "evaluation sets do not exist yet"
    assert estimate.total == 0


def test_prices_have_a_date_and_known_gpus(read):
    estimate = estimate_costs(read("e5-mistral-7b"))
    assert date.fromisoformat(estimate.read_on) <= date.today()
    assert {price.provider for price in estimate.prices} == {"aws", "gcp"}
    for price in estimate.prices:
        assert 0 < price.spot < price.on_demand
        assert (
            price.gpu in GPU_MEMORY_GIB and peak_flops(price.gpu) and price.machine and price.region
        )


@pytest.mark.parametrize(
    ("overrides", "options", "where"),
    [
        ([], {"mfu": 0}, "--mfu 0"),
        ([], {"mfu": 35}, "--mfu 35"),
        ([], {"texts": 0}, "--texts 0"),
        (["scale.teacher.gpu_type=null"], {}, "scale.teacher.gpu_type"),
        (["scale.teacher.gpu_type=H900"], {}, "scale.teacher.gpu_type: H900"),
        (["scale.teacher.gpu_type=L4-24G"], {}, "scale.teacher.gpu_type: L4-24G"),
        (["scale.student.gpu_type=A100-80G"], {}, "scale.teacher.gpu_type"),
        (
            [f"scale.{pool}.gpus=0" for pool in ("teacher", "student", "vectors", "report")],
            {},
            "scale",
        ),
    ],
)
def test_a_recipe_or_option_that_cannot_be_priced_is_refused(read, overrides, options, where):
    with pytest.raises(UserError) as error:
        estimate_costs(read("e5-mistral-7b", *overrides), **options)
    assert error.value.where == where


def test_the_command_prints_a_table_or_a_document(bases, monkeypatch):
    monkeypatch.setattr(out, "width", 200)
    words = ["check", str(RECIPES / "e5-mistral-7b.yaml"), *bases, "--cost", "--texts", "1000"]
    table = CliRunner().invoke(app, words)
    assert table.exit_code == 0, table.output
    for text in ("teacher.phases[0]", "aws spot", "total", "26% of its peak", "list prices"):
        assert text in table.output
    document = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(document.stdout)["cost"]["total"]["gpu_hours"] > 0


def test_mfu_without_cost_is_refused(bases):
    recipe = str(RECIPES / "e5-mistral-7b.yaml")
    done = CliRunner().invoke(app, ["check", recipe, *bases, "--mfu", "1"])
    assert isinstance(done.exception, UserError) and done.exception.where == "--mfu"
