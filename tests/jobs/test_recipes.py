"""Every shipped recipe, with small models and files in place of those that it names."""

import json
from pathlib import Path

import pytest

from stillroom.config.corpus import DocstringSource
from stillroom.config.load import read_recipe
from stillroom.errors import UserError
from stillroom.pipeline.plan import pipeline
from stillroom.preflight.memory import check_memory
from support.recipes import FOLDER, RECIPES
from support.tiny_models import tiny_decoder, tiny_encoder

BIG = [file for file in RECIPES if "gpu_type:" in file.read_text()]
# Sizes of the bases that big recipes name, as their config.json has them.
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
CONFIGS = {
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL_7B,
    "intfloat/e5-mistral-7b-instruct": MISTRAL_7B,
    "Qwen/Qwen3-Embedding-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151669,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "google/embeddinggemma-300m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "google-bert/bert-base-uncased": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
}


def name(file):
    return file.stem


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_decoder(folder / "decoder"), tiny_encoder(folder / "encoder")


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """An empty working directory for the files of a recipe."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(recipe):
    """A few lines for every file that the recipe names."""
    pair = {"query": "a question", "positive": "its answer", "negatives": ["another answer"]}
    conversation = {"prompt": "a question", "completion": "its answer"}
    for source in recipe.corpus.sources.values():
        if isinstance(source, DocstringSource):
            continue
        for path in source.pairs:
            write(path, json.dumps(pair))
        for path in source.passages:
            write(path, "a passage")
        for path in source.conversations:
            write(path, json.dumps(conversation))
    for folder in recipe.corpus.evaluation.values():
        write(f"{folder}/corpus.jsonl", '{"_id": "p", "text": "an answer to a question"}')
        write(f"{folder}/queries.jsonl", '{"_id": "q", "text": "a question"}')
        write(f"{folder}/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\tp\t1")


def write(path, line):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(line + "\n")


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_every_shipped_recipe_can_be_planned(file, working_folder, models):
    bases = [f"teacher.base={models[0]}", f"student.base={models[1]}"]
    recipe = read_recipe(file, bases)
    write_files(recipe)
    steps = pipeline(recipe)
    assert recipe.name == file.stem
    assert steps[0].stage == "corpus"
    students = len(recipe.student.phases)
    after = [step.stage for step in steps if step.stage not in ("corpus", "teacher", "vectors")]
    assert after[-students - 3 :].count("negatives") == 1
    assert [stage for stage in after if stage != "negatives"] == [
        *["student"] * students, "report", "release",
    ]  # fmt: skip
    phases = [step.args["phase"] for step in steps if step.stage == "teacher"]
    assert phases == list(recipe.teacher.phases or [None])
    assert len({step.ref for step in steps}) == len(steps)


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_for_a_laptop_needs_no_download(file, working_folder):
    recipe = read_recipe(file)
    sources = recipe.corpus.sources.values()
    reads_files = not all(isinstance(source, DocstringSource) for source in sources)
    assert reads_files == (file in BIG or file.stem == "help-desk")
    downloads = any("/" in base and not base.startswith("package:") for base in bases(recipe))
    assert downloads == (file in BIG)


def bases(recipe):
    return recipe.teacher.base, recipe.student.base


def with_real_sizes(file, folder, *overrides):
    """The recipe, whose teacher's base is a folder that contains only that model's sizes."""
    config = CONFIGS[read_recipe(file).teacher.base]
    (folder / "config.json").write_text(json.dumps(config))
    return read_recipe(file, [f"teacher.base={folder}", *overrides])


@pytest.mark.parametrize("file", BIG, ids=name)
def test_a_big_recipe_fits_the_gpu_that_it_names(file, working_folder):
    recipe = with_real_sizes(file, working_folder)
    findings = list(check_memory(recipe))
    assert len(findings) == len(recipe.teacher.phases)
    assert all(f"fits {recipe.scale.teacher.gpu_type}" in finding.detail for finding in findings)


@pytest.mark.parametrize(
    ("stem", "overrides", "expected"),
    [
        ("gritlm-7b", ["scale.teacher.zero_stage=1"], "Set scale.teacher.zero_stage=2"),
        (
            "e5-mistral-7b",
            ["scale.teacher.gradient_checkpointing=false"],
            "Set scale.teacher.micro_batch_tokens=4096",
        ),
        ("e5-mistral-7b", ["scale.teacher.gpu_type=T4-16G"], "Set scale.teacher."),
        ("gritlm-7b", ["scale.teacher.gpu_type=T4-16G"], "Name a bigger GPU"),
        ("e5-mistral-7b", ["scale.teacher.gpu_type=H9000"], "H100-80G, A100-80G"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_a_fix(stem, overrides, expected, working_folder):
    recipe = with_real_sizes(FOLDER / f"{stem}.yaml", working_folder, *overrides)
    with pytest.raises(UserError, match="scale.teacher.gpu_type") as error:
        list(check_memory(recipe))
    assert expected in str(error.value)
    if "H9000" not in overrides[0]:
        assert "GiB more than" in str(error.value)


def test_memory_is_reported_where_no_gpu_is_named(working_folder):
    [finding] = check_memory(
        with_real_sizes(
            FOLDER / "e5-mistral-7b.yaml", working_folder, "scale.teacher.gpu_type=null"
        )
    )
    assert finding.ok
    assert "weights 13.4" in finding.detail and "activations" in finding.detail


def test_memory_of_an_unknown_architecture_is_not_estimated(working_folder):
    recipe = with_real_sizes(FOLDER / "e5-mistral-7b.yaml", working_folder)
    (working_folder / "config.json").write_text('{"model_type": "mamba"}')
    [finding] = check_memory(recipe)
    assert "not estimated" in finding.detail
