"""A student is made from any BERT-like base: some of its layers, fewer tokens, or only its
architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.pretrained import load_backbone
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.tokens.batch import pad
from stillroom.errors import UserError
from stillroom.learning.engine.torch_engine import TorchEngine
from support.make_encoder import make_encoder
from support.tiny_models import (
    VOCABULARY,
    roberta_tokenizer,
    unigram_tokenizer,
    word_piece_tokenizer,
)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
# RoBERTa and its relatives
ROBERTA_SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
WORD_PIECE = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3}
BASES = {
    "bert": (lambda: BertModel(BertConfig(**SIZES)), word_piece_tokenizer),
    "roberta": (lambda: RobertaModel(RobertaConfig(**SIZES, **ROBERTA_SPECIAL)), roberta_tokenizer),
    "xlm-roberta": (
        lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES, **ROBERTA_SPECIAL)),
        unigram_tokenizer,
    ),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**SIZES, **ROBERTA_SPECIAL)), roberta_tokenizer),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(
                vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=4, n_heads=4,
                max_position_embeddings=66,
            )
        ),
        word_piece_tokenizer,
    ),
    "electra": (
        lambda: ElectraModel(ElectraConfig(**SIZES, embedding_size=16)),
        word_piece_tokenizer,
    ),
    "deberta-v2": (
        lambda: DebertaV2Model(
            DebertaV2Config(
                **SIZES, pad_token_id=1, relative_attention=True, position_buckets=8,
                max_relative_positions=-1, pos_att_type=["c2p", "p2c"], share_att_key=True,
                position_biased_input=False, norm_rel_ebd="layer_norm", conv_kernel_size=3,
            )
        ),
        unigram_tokenizer,
    ),
    "modernbert": (
        lambda: ModernBertModel(
            ModernBertConfig(
                **SIZES, **WORD_PIECE, eos_token_id=3, local_attention=4,
                global_attn_every_n_layers=2,
            )
        ),
        word_piece_tokenizer,
    ),
}  # fmt: skip
TEXTS = ["one two three four five six seven eight nine ten " * 2, "a", "of the models"]
PRUNING_TEXTS = ["the model is a tensor of the array", "array of arrays", "compute the gradient"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Architecture → a folder with a tiny random model of it."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("bases") / name
            torch.manual_seed(0)
            model, tokenizer = BASES[name]
            model = model()
            for p in model.parameters():  # norms and biases at 1 and 0 would prove less
                p.data += 0.05 * torch.randn_like(p)
            model.save_pretrained(folders[name])
            tokenizer().save_pretrained(folders[name])
        return str(folders[name])

    return folder


def make_student(folder, **changes):
    return make_encoder(folder, **{"precision": "float32", "max_tokens": 64, **changes}).eval()


def take_a_step(encoder):
    """Takes one training step on the texts' vectors."""
    engine = TorchEngine(encoder, weight_decay=0.01, max_grad_norm=1.0)
    vectors = encoder(pad(encoder.prompter(TEXTS, "passage"), encoder.pad_id))
    loss = 1 - vectors[:, 0].mean()
    engine.backward(loss, last=True)
    engine.step(1e-2)


# --- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_a_student_of_some_layers_is_the_base_without_the_others(base_folder, name):
    base = make_student(base_folder(name))
    [layers] = [
        module
        for module in base.backbone.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 4
    ]

    def skip(module, inputs, output):
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    for number in (1, 3):
        layers[number].register_forward_hook(skip)
    cut = make_student(base_folder(name), layers=[0, 2])
    vectors = cut.encode(TEXTS, "passage")
    np.testing.assert_allclose(vectors, base.encode(TEXTS, "passage"), atol=1e-6)
    assert abs(vectors - make_student(base_folder(name)).encode(TEXTS, "passage")).max() > 1e-3


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [0, 2], "vocabulary_size": 700, "texts": PRUNING_TEXTS},
        {"size": {"layers": 3, "hidden": 24, "heads": 3}, "projection_dims": 40},
    ],
    ids=["cut", "random"],
)
def test_a_trained_student_of_any_base_opens_as_it_was_saved(base_folder, tmp_path, name, changes):
    student = make_student(base_folder(name), **changes)
    before = student.encode(TEXTS, "passage")
    take_a_step(student.train())
    vectors = student.encode(TEXTS, "passage")
    assert abs(vectors - before).max() > 1e-3
    save_encoder(student, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.parameters_total == student.parameters_total
    np.testing.assert_allclose(loaded.encode(TEXTS, "passage"), vectors, atol=1e-6)
    theirs = SentenceTransformer(str(tmp_path)).encode(TEXTS)
    np.testing.assert_allclose(theirs, vectors, atol=1e-6)


def test_layers_that_differ_by_position_are_refused(base_folder):
    with pytest.raises(UserError, match="ModernBertModel differ by position.* layer 0.* first"):
        make_student(base_folder("modernbert"), layers=[2, 3])


def test_a_base_that_shares_its_layers_is_refused_by_name(tmp_path):
    AlbertModel(AlbertConfig(**SIZES, embedding_size=16)).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="AlbertModel does not keep its 4 layers in one list"):
        make_student(str(tmp_path), layers=[0, 2])


# --- random weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_a_student_of_a_given_size_has_that_size_and_its_seed_s_weights(base_folder, name):
    size = {"layers": 5, "hidden": 24, "heads": 3, "intermediate": 40}
    first, same, other = (
        make_student(base_folder(name), size=size, seed=seed, max_tokens=80) for seed in (1, 1, 2)
    )
    config = first.backbone.config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert sizes == (5, 24, 3)
    assert first.contract.dims == (24,)
    [long] = first.prompter(["one two " * 80], "passage")
    assert len(long.ids) == 80
    assert np.isfinite(first.encode(["one two " * 80], "passage")).all()
    vectors = first.encode(TEXTS, "passage")
    np.testing.assert_array_equal(vectors, same.encode(TEXTS, "passage"))
    assert abs(vectors - other.encode(TEXTS, "passage")).max() > 1e-3


def test_a_student_of_a_given_size_needs_no_weights_of_its_base(base_folder, tmp_path):
    BertConfig(**SIZES).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    make_student(str(tmp_path), size={"layers": 1, "hidden": 16, "heads": 2})
    with pytest.raises(UserError, match="student.size.*hidden"):
        make_student(str(tmp_path), size={"layers": 1, "hidden": 16, "heads": 3})


def test_a_decoder_is_refused_as_a_student_s_architecture(decoder):
    with pytest.raises(UserError, match="llama is a decoder"):
        make_student(str(decoder), size={"layers": 1, "hidden": 16, "heads": 2})


def test_a_deeper_modernbert_continues_its_layer_pattern(base_folder):
    size = {"layers": 5, "hidden": 24, "heads": 3}
    kinds = make_student(base_folder("modernbert"), size=size).backbone.config.layer_types
    base = load_backbone(Path(base_folder("modernbert"))).config.layer_types
    assert kinds[:4] == base
    assert kinds[4] == base[2]
