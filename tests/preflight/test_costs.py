"""`stillroom check --cost`: exact arithmetic on a known shape, and what it says of bad input."""

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
    """Overrides that name folders which hold a config.json and nothing else."""
    found = []
    for role, config in (("teacher", MISTRAL), ("student", MINILM)):
        folder = tmp_path_factory.mktemp(role)
        (folder / "config.json").write_text(json.dumps(config))
        found.append(f"{role}.base={folder}")
    return found


@pytest.fixture(scope="module")
def read(bases):
    def read(name, *overrides):
        return read_recipe(RECIPES / f"{name}.yaml", [*bases, *overrides])

    return read


def part(found, what):
    (one,) = (part for part in found.parts if part.what == what)
    return one


def test_e5_mistral_s_training_is_what_its_numbers_multiply_to(read):
    found = estimate_costs(read("e5-mistral-7b"))
    texts = 2048 * (1 + 2)  # a query, its positive and one negative, of 512 tokens each
    scored = 32 * 512**2 * 4096
    each = 512 * (4 * LINEAR + 6 * LORA) + 12 * scored
    trained = part(found, "teacher.phases[0]")
    assert trained.flops == 879 * texts * each
    assert (trained.gpus, found.gpu, found.mfu) == (8, "H100-80G", MFU)
    assert found.hours(trained) == pytest.approx(879 * texts * each / (989e12 * MFU) / 3600)


def test_how_many_workers_share_it_changes_no_gpu_hour(read):
    one, eight = (
        estimate_costs(read("e5-mistral-7b", f"scale.teacher.workers={n}")) for n in (1, 8)
    )
    assert part(one, "teacher.phases[0]").flops == part(eight, "teacher.phases[0]").flops
    assert [part(found, "teacher.phases[0]").gpus for found in (one, eight)] == [1, 8]


def test_money_is_hours_at_every_provider_s_price_on_demand_and_spot(read):
    told = estimate_costs(read("e5-mistral-7b"), mfu=0.5, texts=1000).as_json()
    hours = sum(one["gpu_hours"] for one in told["parts"] if one["gpu_hours"] is not None)
    assert told["total"]["gpu_hours"] == pytest.approx(hours)
    for price in told["prices"]["per_gpu_hour"]:
        for kind in ("on_demand", "spot"):
            paid = told["total"]["cost"][price["provider"]][kind]
            assert paid == round(hours * price[kind], 2)
    (trained,) = (one for one in told["parts"] if one["what"] == "teacher.phases[0]")
    assert trained["hours"] == pytest.approx(trained["gpu_hours"] / 8)


def test_twice_the_share_of_the_peak_is_half_of_the_hours(read):
    recipe = read("nv-embed-v2-7b")
    assert estimate_costs(recipe, mfu=0.4).total == pytest.approx(
        estimate_costs(recipe, mfu=0.2).total / 2
    )


def test_the_corpus_is_embedded_once_for_every_teacher_that_looks_for_negatives(read):
    each = FlopCounter.planned(model_shape(MISTRAL), TrainingSetup()).forward([512])
    plain = estimate_costs(read("e5-mistral-7b"), texts=1000)
    assert part(plain, "vectors").flops == 1000 * each
    # The student's negatives are the last teacher's to mine, who embeds it anyway; the base's not.
    with_base = estimate_costs(read("e5-mistral-7b", "negatives.miner=[teacher, base]"), texts=1000)
    assert part(with_base, "vectors").flops == 2 * 1000 * each
    mined = estimate_costs(
        read("gecko-style", "scale.teacher.gpu_type=H100-80G", "scale.teacher.gpus=1")
    )
    assert part(mined, "vectors").why == "--texts is not given"


def test_a_student_trains_every_weight_and_hears_an_online_teacher_afresh(read):
    small, large = model_shape(MINILM), model_shape(MISTRAL)
    run = TrainingSetup(embedded=((128, 64), (128 * 2, 128)))
    alone = estimate_costs(read("e5-mistral-7b"))
    assert part(alone, "student.phases[0]").flops == 20000 * 8 * step_flops(small, run)
    online = estimate_costs(read("e5-mistral-7b", "student.phases.0.online_teacher=true"))
    more = 20000 * 1024 * 3 * FlopCounter.planned(large, TrainingSetup()).forward([512])
    assert part(online, "student.phases[0]").flops == 20000 * 8 * step_flops(small, run) + more


def test_what_cpus_do_and_what_cannot_be_known_is_told_and_not_counted(read):
    found = estimate_costs(
        read("e5-mistral-7b", "scale.student.gpus=0", "teacher.precision=float32")
    )
    assert found.hours(part(found, "student.phases[0]")) is None
    assert part(found, "teacher.phases[0]").why == "trains in float32, whose speed is unknown"
    assert part(found, "report").why == "evaluation sets do not exist yet"
    assert found.total == 0


def test_prices_are_dated_and_of_gpus_that_are_known(read):
    found = estimate_costs(read("e5-mistral-7b"))
    assert date.fromisoformat(found.read_on) <= date.today()
    assert {price.provider for price in found.prices} == {"aws", "gcp"}
    for price in found.prices:
        assert 0 < price.spot < price.on_demand
        assert (
            price.gpu in GPU_MEMORY_GIB and peak_flops(price.gpu) and price.machine and price.region
        )


@pytest.mark.parametrize(
    ("overrides", "given", "where"),
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
def test_what_cannot_be_priced_is_refused(read, overrides, given, where):
    with pytest.raises(UserError) as fault:
        estimate_costs(read("e5-mistral-7b", *overrides), **given)
    assert fault.value.where == where


def test_the_command_prints_a_table_or_a_document(bases, monkeypatch):
    monkeypatch.setattr(out, "width", 200)
    words = ["check", str(RECIPES / "e5-mistral-7b.yaml"), *bases, "--cost", "--texts", "1000"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    for said in ("teacher.phases[0]", "aws spot", "total", "26% of its peak", "list prices"):
        assert said in shown.output
    printed = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(printed.stdout)["cost"]["total"]["gpu_hours"] > 0


@pytest.mark.parametrize("option", ["--mfu", "--texts"])
def test_options_of_the_cost_alone_are_refused(bases, option):
    recipe = str(RECIPES / "e5-mistral-7b.yaml")
    done = CliRunner().invoke(app, ["check", recipe, *bases, option, "1"])
    assert isinstance(done.exception, UserError) and done.exception.where == option
