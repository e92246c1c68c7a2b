"""Packed rows give the vectors, losses and gradients of padded batches."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.pretrained import load_backbone
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers import packing
from stillroom.encoders.layers.backbone import checkpoint_activations, set_dropout
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.layers.packing import pack_attention
from stillroom.encoders.micro_batches import micro_batches
from stillroom.encoders.tokens.batch import pad, pad_labelled
from stillroom.errors import UserError
from support.make_encoder import make_encoder
from support.tiny_models import (
    VOCABULARY,
    byte_pair_tokenizer,
    roberta_tokenizer,
    unigram_tokenizer,
    word_piece_tokenizer,
)

TEXTS = ["a short text", "another text, which has quite a few more words than the first one", "x"]
LORA = LoraOptions(rank=4, alpha=8)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
}
WINDOW = 4  # tokens; most texts are longer
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SIZES, use_sliding_window=True, sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("models") / name
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(folders[name])
            byte_pair_tokenizer().save_pretrained(folders[name])
        return folders[name]

    return folder


def build_encoder(folder, attention, *, packed, **changes):
    fields = {"precision": "float32", "head": True, **changes}
    model = make_encoder(folder, attention=attention, **fields).train()
    if packed:
        pack_attention(model.backbone)
    return model


def results(model, side="right", texts=TEXTS):
    """Vectors, losses of predicted tokens, and every gradient of both."""
    batch = pad(model.prompter(texts, "query"), model.pad_id, side=side)
    pairs = [(text, " and an answer") for text in texts]
    labelled = pad_labelled(model.prompter.label_completions(pairs, max_tokens=64), model.pad_id)
    vectors, losses = model(batch), model(labelled)
    (vectors[:, :5].sum() + losses.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return vectors, losses, gradients


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.promise("attention")
def test_packed_equals_padded(model_folder, name, attention, side):
    padded = results(build_encoder(model_folder(name), attention, packed=False))
    packed = results(build_encoder(model_folder(name), attention, packed=True), side)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=2e-5)


def test_rows_are_filled_up_to_few_lengths_without_changing_results(model_folder):
    """Few lengths, because oneDNN compiles and caches kernels for each of them."""
    padded = build_encoder(model_folder("llama"), "bidirectional", packed=False)
    packed = build_encoder(model_folder("llama"), "bidirectional", packed=True)
    rows, tokens = [], []
    packed.backbone.register_forward_pre_hook(
        lambda _, args, named: rows.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        for count in range(1, 120):
            batch = pad(packed.prompter(["text"] * count + TEXTS, "query"), packed.pad_id)
            torch.testing.assert_close(packed(batch), padded(batch), rtol=1e-4, atol=2e-5)
            tokens.append(int(batch.mask_bl.sum()))
    assert all(n <= row <= n * 33 / 32 for n, row in zip(tokens, rows, strict=True))
    between = {row for row in rows if 128 < row <= 256}
    assert len(between) <= 32 < len({n for n in tokens if 128 < n <= 256})
    texts = [*TEXTS * 7, "x"]
    packed_results = results(packed, texts=texts)
    assert rows[-2] > sum(len(text.ids) for text in packed.prompter(texts, "query"))
    torch.testing.assert_close(packed_results, results(padded, texts=texts), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_padded_in_bfloat16_to_its_rounding(model_folder, name):
    padded, packed = (
        build_encoder(
            model_folder(name), "bidirectional", packed=packed, lora=LORA, precision="bfloat16"
        )
        for packed in (False, True)
    )
    cosines = (padded.encode(TEXTS, "query") * packed.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.9995


def test_on_a_cpu_packed_attention_is_float32_though_the_forward_is_bfloat16():
    torch.manual_seed(0)
    rows = [torch.randn(1, 4, 90, 8).bfloat16() for _ in range(3)]

    def attended(rows):
        starts = torch.tensor([0, 50, 90], dtype=torch.int32)
        layer = SimpleNamespace(is_causal=False, num_key_value_groups=1)
        return packing.packed_attention(
            layer, *rows, None, lengths=[50, 40], starts=starts, scaling=0.3
        )[0]

    with torch.autocast("cpu", torch.bfloat16):
        output = attended(rows)
    assert torch.equal(output, attended([row.float() for row in rows]).bfloat16())


@pytest.mark.parametrize("lora", [None, LORA])
def test_recomputed_packed_layers_give_the_same_gradients(model_folder, lora):
    plain = build_encoder(model_folder("llama"), "bidirectional", packed=True, lora=lora)
    checkpointed = build_encoder(model_folder("llama"), "bidirectional", packed=True, lora=lora)
    checkpoint_activations(checkpointed.backbone)
    torch.testing.assert_close(results(checkpointed), results(plain), rtol=1e-5, atol=1e-6)


def test_a_packed_backbone_is_given_no_padding(model_folder):
    model = build_encoder(model_folder("llama"), "bidirectional", packed=True)
    shapes = []
    model.backbone.layers[0].register_forward_pre_hook(
        lambda _, inputs: shapes.append(inputs[0].shape)
    )
    tokens = model.prompter(TEXTS, "query")
    model(pad(tokens, model.pad_id))
    assert shapes == [(1, sum(len(text.ids) for text in tokens), 32)]


def test_dropout_reaches_packed_attention(model_folder):
    model = build_encoder(model_folder("llama"), "bidirectional", packed=True)
    batch = pad(model.prompter(TEXTS, "query"), model.pad_id)
    assert torch.equal(model(batch), model(batch))
    for layer in model.backbone.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.equal(model(batch), model(batch))


def test_an_encoder_that_was_trained_packed_is_saved_like_any_other(model_folder, tmp_path):
    model = build_encoder(model_folder("mistral"), "bidirectional", packed=True)
    save_encoder(model, tmp_path)
    assert packing.PACKED not in json.loads((tmp_path / "config.json").read_text()).values()
    np.testing.assert_allclose(
        load_encoder(tmp_path).encode(TEXTS, "query"), model.encode(TEXTS, "query"), atol=2e-6
    )


@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 4)])
def test_the_gpu_kernel_accepts_its_inputs_shapes_and_types(causal, window):
    """Checks shapes and types only: a fake tensor needs no GPU and computes nothing."""
    with FakeTensorMode():
        sizes = {"query": (4, torch.float32), "key": (2, torch.float32), "value": (2, torch.half)}
        row = [torch.empty(1, h, 9, 8, dtype=t, device="cuda") for h, t in sizes.values()]
        starts = torch.empty(3, dtype=torch.int32, device="cuda")
        output, _ = packing.packed_attention(
            torch.nn.Module(), *row, None, lengths=[4, 5], starts=starts, is_causal=causal,
            scaling=0.3, sliding_window=window,
        )  # fmt: skip
    assert (output.shape, output.dtype) == ((1, 9, 4, 8), torch.half)


ENCODER = {**{name: SIZES[name] for name in list(SIZES)[:5]}, "max_position_embeddings": 66}
ROBERTA_SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
STUDENTS = {
    "bert": (lambda: BertModel(BertConfig(**ENCODER)), word_piece_tokenizer),
    "roberta": (
        lambda: RobertaModel(RobertaConfig(**ENCODER, **ROBERTA_SPECIAL)), roberta_tokenizer,
    ),
    "xlm-roberta": (
        lambda: XLMRobertaModel(XLMRobertaConfig(**ENCODER, **ROBERTA_SPECIAL)), unigram_tokenizer,
    ),
    "electra": (
        lambda: ElectraModel(ElectraConfig(**ENCODER, embedding_size=16)), word_piece_tokenizer,
    ),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
        ),
        word_piece_tokenizer,
    ),
    "modernbert": (
        lambda: ModernBertModel(
            ModernBertConfig(
                **ENCODER, local_attention=WINDOW, global_attn_every_n_layers=2, pad_token_id=0,
                bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
            )
        ),
        word_piece_tokenizer,
    ),
    "nomic_bert": (lambda: NomicBertModel(NomicBertConfig(**ENCODER)), word_piece_tokenizer),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.promise("vectors")
def test_a_packed_encoder_gives_a_padded_one_s_vectors_and_gradients(name, pooling, tmp_path):
    torch.manual_seed(0)
    model, tokenizer = STUDENTS[name]
    model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    outputs = []
    for packed in (False, True):
        student = build_encoder(tmp_path, None, packed=packed, head=False, pooling=pooling)
        set_dropout(student.backbone, 0.0)
        vectors = student(pad(student.prompter(TEXTS, "passage"), student.pad_id))
        vectors[:, :5].sum().backward()
        gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
        outputs.append((vectors, gradients))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=2e-5)


def test_packed_batches_fill_their_token_budget():
    lengths = [3, 50, 7, 20, 20, 61, 9]
    budget = 60

    def lengths_of_batches(packed):
        rows = micro_batches(lengths, budget, packed=packed)
        assert sorted(np.concatenate(rows)) == [*range(len(lengths))]
        return [sorted(lengths[row] for row in batch) for batch in rows]

    assert lengths_of_batches(packed=True) == [[61], [50], [3, 7, 9, 20, 20]]
    assert lengths_of_batches(packed=False) == [[61], [50], [9, 20, 20], [3, 7]]


def test_an_architecture_that_is_not_known_to_pack_is_refused_by_name(tmp_path):
    MPNetModel(MPNetConfig(**ENCODER)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="MPNetModel"):
        pack_attention(load_backbone(tmp_path))


def test_a_torch_too_old_to_pack_on_a_gpu_is_refused(monkeypatch):
    class OnGpu:
        def parameters(self):
            yield SimpleNamespace(device=torch.device("cuda"))

    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    with pytest.raises(UserError, match=r"needs torch 2\.12 on a GPU, and this is 2\.11\.0"):
        pack_attention(OnGpu())
