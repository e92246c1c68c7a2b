"""Models that sentence-transformers runs itself: the library's own vectors, and nothing trained."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from stillroom.encoders.contract import BaseContract, LibraryContract
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files import library
from stillroom.encoders.files.create import combine_encoders, create_encoder
from stillroom.encoders.files.library import create_library_encoder, library_reason
from stillroom.encoders.files.load import load_encoder, require_weights
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.library_encoder import LibraryEncoder
from stillroom.errors import UserError
from support.library_folders import (
    OWN_MODULE,
    of_transformer,
    save_library_model,
    static_embedding,
    two_routes,
    word_weights,
)

TEXTS = ["house", "A Good HOUSE stands here. " * 3, "the 日本語 text", "many words " * 400]


def two_poolings(encoder):
    return of_transformer(encoder, ("mean", "max"), Normalize())


KINDS = {
    "several poolings": lambda encoder: (two_poolings(encoder), {"prompts": {"query": "query: "}}),
    "dot": lambda encoder: (
        of_transformer(encoder, ("cls", "mean")),
        {"similarity_fn_name": "dot"},
    ),
    "cut": lambda encoder: (of_transformer(encoder, ("mean", "max")), {"truncate_dim": 48}),
    "static": lambda encoder: ([static_embedding()], {}),
    "router": lambda encoder: (two_routes(encoder), {"prompts": {"document": "passage: "}}),
    "word weights": lambda encoder: (
        [
            (modules := of_transformer(encoder, "mean"))[0],
            word_weights(modules[0].tokenizer),
            modules[1],
        ],
        {},
    ),
}


@pytest.fixture(scope="module")
def folders(encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    saved = {}
    for kind, build in KINDS.items():
        modules, options = build(encoder)
        saved[kind] = save_library_model(root / kind, modules, **options)
    return saved


@pytest.fixture
def two(folders):
    return folders["several poolings"]


def library_vectors(folder, texts, role, **options):
    """As the library's users get them; of unit length where cosine compares them."""
    model = SentenceTransformer(str(folder), device="cpu", **options)
    encode = model.encode_query if role == "query" else model.encode_document
    return encode(texts, normalize_embeddings=model.similarity_fn_name == "cosine")


@pytest.mark.parametrize("role", ["query", "passage"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_only_the_library_can_run_has_the_library_s_own_vectors(folders, kind, role):
    encoder = load_encoder(folders[kind])
    assert isinstance(encoder, LibraryEncoder)
    expected = library_vectors(folders[kind], TEXTS, role)
    np.testing.assert_allclose(encoder.encode(TEXTS, role), expected, atol=1e-5)
    assert encoder.contract.dims == (expected.shape[1],)


def test_the_log_says_in_one_line_that_the_library_runs_a_model_and_why(two, caplog):
    with caplog.at_level(logging.INFO, "stillroom"):
        load_encoder(two)
    lines = [record.getMessage() for record in caplog.records if "runs this model" in record.msg]
    assert len(lines) == 1
    assert str(two) in lines[0] and "several poolings" in lines[0]


def test_a_folder_that_our_own_forward_can_express_is_not_the_library_s(encoder, tmp_path):
    folder = save_library_model(tmp_path / "mean", of_transformer(encoder, "mean", Normalize()))
    assert library_reason(folder) is None
    assert isinstance(load_encoder(folder), Encoder)


def test_a_batch_may_mix_roles_and_prompts(two):
    encoder = load_encoder(two)
    tokens = [
        *encoder.prompter(TEXTS[:2], "query"),
        *encoder.prompter(TEXTS[:2], "passage"),
        *encoder.prompter(TEXTS[:1], "query", prompt="Instruct: "),
    ]
    expected = [
        encoder.encode(TEXTS[:2], "query"),
        encoder.encode(TEXTS[:2], "passage"),
        encoder.encode(TEXTS[:1], "query", prompt="Instruct: "),
    ]
    np.testing.assert_allclose(encoder.encode_batch(tokens), np.concatenate(expected), atol=1e-5)


def test_a_copied_prompter_counts_the_ids_that_the_library_reads(two):
    encoder = load_encoder(two)
    counted = [len(text.ids) for text in encoder.prompter.copy()(TEXTS, "query")]
    read = encoder.model.preprocess(TEXTS, prompt="query: ")["attention_mask"].sum(1)
    assert counted == read.tolist()


def test_token_ids_and_a_cut_at_the_left_are_refused_by_name(two):
    prompter = load_encoder(two).prompter
    with pytest.raises(UserError, match="tokenises this model's texts itself"):
        prompter.from_ids([[5, 6]], "query")
    with pytest.raises(UserError, match="cuts off the end"):
        prompter(TEXTS, "query", overlong="cut_left")
    with pytest.raises(UserError, match="a text takes \\d+ tokens, and 256 is the most"):
        prompter(TEXTS, "query", overlong="refuse")


def test_options_of_the_contract_reach_the_library(two):
    options = ContractOptions(
        prompts={"query": "Q: ", "passage": ""}, max_tokens=20, dims=(32, 16), precision="float32"
    )
    encoder = create_library_encoder(str(two), space="s", options=options)
    model = SentenceTransformer(str(two), device="cpu", truncate_dim=32)
    model.max_seq_length = 20
    expected = model.encode(TEXTS, prompt="Q: ", normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), expected, atol=1e-5)
    short = encoder.encode(TEXTS, "query", dims=16)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "option", [{"pooling": "mean"}, {"attention": "causal"}, {"echo": True}, {"pool_prompt": False}]
)
def test_options_of_our_own_forward_are_refused_by_name(two, option):
    with pytest.raises(UserError, match=next(iter(option))):
        create_library_encoder(str(two), space="s", options=ContractOptions(**option))


def test_max_tokens_of_a_model_that_cuts_no_texts_is_refused(folders):
    with pytest.raises(UserError, match="max_tokens: has no effect"):
        options = ContractOptions(max_tokens=10)
        create_library_encoder(str(folders["static"]), space="s", options=options)


def test_its_artifact_is_a_contract_alone_and_opens_to_the_same_vectors(two, tmp_path):
    options = ContractOptions(max_tokens=30)
    encoder = create_library_encoder(str(two), space="s", options=options)
    save_encoder(encoder, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["contract.json"]
    assert isinstance(BaseContract.read(tmp_path), LibraryContract)
    opened = load_encoder(tmp_path)
    assert opened.contract == encoder.contract and opened.contract.space == "s"
    np.testing.assert_array_equal(opened.encode(TEXTS, "query"), encoder.encode(TEXTS, "query"))


def test_a_library_model_can_be_a_member_of_an_ensemble(two, encoder, tmp_path):
    members = [
        create_library_encoder(str(two), space="0"),
        create_encoder(str(encoder), space="1", options=ContractOptions(pooling="mean")),
    ]
    save_encoder(combine_encoders(members, "concatenate", space="s"), tmp_path)
    vectors = load_encoder(tmp_path).encode(TEXTS, "query")
    expected = members[0].encode(TEXTS, "query") / np.sqrt(2)
    np.testing.assert_allclose(vectors[:, :128], expected, atol=1e-5)


def test_training_and_exports_of_a_library_model_are_refused_by_name(folders, tmp_path):
    two, static = folders["several poolings"], folders["static"]
    with pytest.raises(UserError, match=r"several poolings.*encoder: sentence_transformers"):
        load_encoder(two, trainable=True)
    with pytest.raises(
        UserError, match=r"a StaticEmbedding module.*encoder: sentence_transformers"
    ):
        create_encoder(str(static), space="s")
    encoder = load_encoder(two)
    with pytest.raises(UserError, match="run by sentence-transformers, and its weights"):
        require_weights(encoder, "it")
    save_encoder(encoder, tmp_path)
    with pytest.raises(UserError, match="run by sentence-transformers, and its weights"):
        load_encoder(tmp_path, trainable=True)
    with pytest.raises(UserError, match="run by sentence-transformers, and its weights"):
        create_encoder(str(tmp_path), space="s")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def editable(two, tmp_path):
    return shutil.copytree(two, tmp_path / "edited")


def with_own_module(folder):
    """Adds a module of the model's own, which reverses vectors."""
    modules = json.loads((folder / "modules.json").read_text())
    own = {"idx": 9, "name": "9", "path": "9_Reversed", "type": "modeling_own.Reversed"}
    (folder / "modules.json").write_text(json.dumps([*modules, own]))
    (folder / "modeling_own.py").write_text(OWN_MODULE)
    (folder / "9_Reversed").mkdir()
    (folder / "9_Reversed" / "config.json").write_text("{}")
    return folder


def test_a_model_s_own_code_runs_only_when_the_user_trusts_it(two, editable):
    folder = with_own_module(editable)
    with pytest.raises(UserError, match=r"modules.json: type is modeling_own\.Reversed"):
        load_encoder(folder)
    encoder = load_encoder(folder, trust_remote_code=True)
    plain = load_encoder(two).encode(TEXTS, "query")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), plain[:, ::-1], atol=1e-6)


def test_a_model_with_tasks_of_its_own_gets_the_one_that_its_prompt_is_named_by(two, editable):
    folder = with_own_module(editable)
    path = folder / "modules.json"
    *others, own = json.loads(path.read_text())
    path.write_text(json.dumps([*others, {**own, "kwargs": ["task"]}]))
    prompts = {"retrieval.query": "find: ", "retrieval.passage": "here is: "}
    edit_json(folder / "config_sentence_transformers.json", prompts=prompts)
    names = {"query": "retrieval.query", "passage": "retrieval.passage"}
    encoder = create_library_encoder(
        str(folder), space="s", options=ContractOptions(prompt=names), trust_remote_code=True
    )
    plain = load_encoder(two)
    for role, reverses in (("query", 1), ("passage", -1)):
        expected = plain.encode(TEXTS, role, prompt=prompts[names[role]])[:, ::reverses]
        np.testing.assert_allclose(encoder.encode(TEXTS, role), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"by name, among retrieval\.query, retrieval\.passage"):
        load_encoder(folder, trust_remote_code=True).encode(TEXTS, "query")


def test_an_activation_that_the_library_would_replace_in_silence_is_refused(encoder, tmp_path):
    folder = save_library_model(
        tmp_path / "dense", of_transformer(encoder, ("mean", "max"), Dense(128, 32))
    )
    [dense] = folder.glob("*Dense/config.json")
    edit_json(dense, activation_function="transformers.activations.NewGELUActivation")
    with pytest.raises(UserError, match="activation_function is transformers.activations"):
        load_encoder(folder)


def test_weights_that_the_library_would_draw_at_random_are_refused_by_name(editable):
    weights = editable / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights.*encoder.layer.1.output.dense.weight"):
        load_encoder(editable)


def test_pickled_weights_are_never_read(editable):
    weights = editable / "model.safetensors"
    torch.save(load_file(weights), editable / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin: is pickled"):
        load_encoder(editable)


def test_a_model_of_another_type_is_refused_and_not_pooled_anyhow(editable):
    edit_json(editable / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(UserError, match="model_type: is SparseEncoder"):
        load_encoder(editable)


def test_similarity_by_distance_is_refused(editable):
    edit_json(editable / "config_sentence_transformers.json", similarity_fn_name="euclidean")
    with pytest.raises(UserError, match="similarity_fn_name: is euclidean"):
        load_encoder(editable)


def test_quantised_weights_whose_package_is_missing_are_refused_with_its_name(editable):
    edit_json(
        editable / "config.json",
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
    )
    assert library_reason(editable) == "has quantised weights"
    with pytest.raises(UserError, match="cannot be opened by sentence-transformers.*bitsandbytes"):
        load_encoder(editable)


def test_positions_that_the_model_lacks_are_not_read(editable):
    [config] = [f for f in editable.rglob("sentence_bert_config.json")]
    edit_json(config, max_seq_length=9999)
    encoder = load_encoder(editable)
    assert encoder.contract.max_tokens == 256
    assert np.isfinite(encoder.encode(["many words " * 4000], "query")).all()


def test_the_end_that_only_tokenizer_config_asks_for_is_added_for_the_library_too(
    decoder, tmp_path
):
    folder = save_library_model(
        tmp_path / "decoder", of_transformer(decoder, ("lasttoken", "mean"))
    )
    edit_json(folder / "tokenizer_config.json", add_eos_token=True)
    model = load_encoder(folder).model
    ids = model.preprocess(["a house"])["input_ids"][0].tolist()
    assert ids[0] == model.tokenizer.bos_token_id and ids[-1] == model.tokenizer.eos_token_id


def test_weights_stored_in_sixteen_bits_stay_so_where_the_machine_computes_in_them(
    editable, monkeypatch
):
    weights = editable / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    edit_json(editable / "config.json", dtype="bfloat16")
    monkeypatch.setattr(library, "fastest_precision", lambda: "bfloat16")
    encoder = create_library_encoder(str(editable), space="s")
    assert encoder.contract.precision == "bfloat16"
    assert {weight.dtype for weight in encoder.model.parameters()} == {torch.bfloat16}
    exact = load_encoder(editable)
    assert exact.contract.precision == "float32"
    cosines = (encoder.encode(TEXTS, "query") * exact.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.99  # a step of bfloat16 is up to .008 of a number


def test_a_static_model_s_text_of_unknown_words_alone_is_refused_not_zero(tmp_path):
    folder = save_library_model(tmp_path / "static", [static_embedding()])
    with pytest.raises(UserError, match="length zero"):
        load_encoder(folder).encode(["house", ""], "query")
