"""What `check` finds by encoding with the files of the models that a recipe names."""

import json
import shutil

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import BertConfig, BertModel

from stillroom.config.student import Student
from stillroom.config.teacher import Teacher, TeacherMember
from stillroom.errors import UserError
from stillroom.preflight.models import BaseModel, check_model
from stillroom.preflight.trial import try_model
from support.library_folders import of_transformer, save_library_model, static_embedding
from support.tiny_models import word_piece_tokenizer


@pytest.fixture(scope="module")
def mean(encoder, tmp_path_factory):
    return save_library_model(
        tmp_path_factory.mktemp("trial") / "mean",
        of_transformer(encoder, "mean", Normalize()),
        prompts={"query": "query: "},
    )


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return save_library_model(tmp_path_factory.mktemp("trial") / "static", [static_embedding()])


def teacher(folder, **fields):
    section = Teacher(base=str(folder), **fields)
    return BaseModel("teacher.base", str(folder), section.pooling, False, section, trained=False)


def student(folder, **fields):
    phase = {"data": "texts", "steps": 1, "global_batch": 1, "learning_rate": 1e-4}
    phase["losses"] = {"pairwise_mse": 1.0}
    section = Student.model_validate_json(
        json.dumps({"base": str(folder), "phases": [phase], **fields})
    )
    return BaseModel("student.base", str(folder), section.pooling, False, section)


@pytest.mark.parametrize("role", [teacher, student])
def test_a_folder_of_the_library_s_format_is_compared_with_it(mean, role):
    check_model(role(mean))
    assert try_model(role(mean)).endswith("texts as in sentence-transformers (random weights)")


def test_a_plain_model_is_tried_by_our_own_forward(decoder, encoder):
    assert "texts encoded" in try_model(teacher(decoder, pooling="last", append_eos=True))
    assert "texts encoded" in try_model(student(encoder, pooling="mean"))


def test_what_only_the_library_can_run_may_be_a_teacher_but_no_student_s_base(static):
    check_model(teacher(static))
    assert try_model(teacher(static)).startswith("run by sentence-transformers; ")
    with pytest.raises(UserError):
        check_model(student(static))
        try_model(student(static))
    with pytest.raises(UserError, match="a StaticEmbedding module"):
        try_model(teacher(static, encoder="stillroom"))


def test_a_recipe_can_have_the_library_run_what_our_own_forward_could(mean):
    assert try_model(teacher(mean, encoder="sentence_transformers")).startswith("run by sentence")
    member = TeacherMember(base=str(mean), encoder="sentence_transformers")
    model = BaseModel("teacher.members.0.base", str(mean), None, False, member, trained=False)
    assert try_model(model).startswith("run by sentence-transformers; ")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tokenizer_of_another_vocabulary_is_found(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="token"):
        try_model(teacher(tmp_path, pooling="mean"))


def test_a_length_above_the_table_of_positions_is_cut_to_it(mean, tmp_path):
    folder = shutil.copytree(mean, tmp_path / "long")
    edit_json(folder / "sentence_bert_config.json", max_seq_length=9999)
    assert "as in sentence-transformers" in try_model(teacher(folder))


def test_a_tokenizer_without_pad_eos_and_unk_is_found(decoder, tmp_path):
    folder = shutil.copytree(decoder, tmp_path / "no-pad")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for name in ("pad_token", "eos_token", "unk_token"):
        config.pop(name, None)
    path.write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="without a token for padding"):
        try_model(teacher(folder, pooling="last"))


def test_more_tokens_than_the_model_reads_are_refused(mean):
    with pytest.raises(UserError, match="max_tokens: 9999 is more than"):
        try_model(teacher(mean, max_tokens=9999))


def test_errors_name_the_folder_of_the_recipe_and_not_its_copy(mean, tmp_path):
    folder = shutil.copytree(mean, tmp_path / "broken")
    pooling = folder / "1_Pooling" / "config.json"
    edit_json(pooling, pooling_mode=[])
    with pytest.raises(UserError) as raised:
        try_model(teacher(folder))
    assert str(folder) in str(raised.value)


def test_settings_that_the_library_cannot_honour_are_refused_in_the_recipe(mean):
    with pytest.raises(ValueError, match="pooling, lora has no effect"):
        Teacher(base=str(mean), encoder="sentence_transformers", pooling="mean", lora=None)
    with pytest.raises(ValueError, match="phases has no effect"):
        Teacher.model_validate_json(
            json.dumps(
                {
                    "base": str(mean),
                    "encoder": "sentence_transformers",
                    "phases": [
                        {
                            "objective": "simcse",
                            "steps": 1,
                            "global_batch": 2,
                            "learning_rate": 1e-4,
                        }
                    ],
                }
            )
        )
    with pytest.raises(ValueError, match="attention has no effect"):
        TeacherMember(base=str(mean), encoder="sentence_transformers", attention="causal")
