"""The loss of predicted tokens equals that of transformers' own language model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens, pad, pad_labelled
from stillroom.errors import UserError
from support.make_encoder import make_encoder

PAIRS = [
    ("What is a still?", " A vessel in which a liquid is made to boil, and its steam to cool."),
    ("Short?", " Yes."),
    ("", "a completion that nothing came before"),
]
LORA = LoraOptions(rank=4, alpha=8)


@pytest.fixture(scope="module")
def tied(decoder, tmp_path_factory):
    """A decoder whose head is tied to its embedding, and so is not in its file."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(decoder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(decoder).save_pretrained(folder)
    return folder


def encoder_with_head(folder, attention="bidirectional", **changes):
    return make_encoder(
        folder, attention=attention, precision="float32", head=True, **changes
    ).eval()


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_summed_nll_is_what_the_language_model_s_own_logits_give(decoder, tied, kind, attention):
    folder = tied if kind == "tied" else decoder
    model = encoder_with_head(folder, attention)
    labelled = model.prompter.label_completions(PAIRS, max_tokens=64)
    language_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for text in labelled:
        log_probabilities = (
            language_model(input_ids=torch.tensor([text.ids])).logits[0].log_softmax(-1)
        )
        expected.append(
            -sum(
                log_probabilities[i, label]
                for i, label in enumerate(text.labels)
                if label != IGNORE_INDEX
            )
        )
    batch = pad_labelled(labelled, model.pad_id)
    assert not batch.mask_bl.all()
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-5, atol=1e-5)


def nll_of_first_label(model, last, attention):
    """The loss of the first state's label in a text that ends in `last`, batched with a longer
    text."""
    text = LabelledTokens([5, 6, 7, 8, last], [9] + [IGNORE_INDEX] * 4, attention)
    longer = LabelledTokens([5] * 8, [IGNORE_INDEX] * 8, attention)
    return model(pad_labelled([text, longer], model.pad_id))[0]


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_encoder_attends_as_each_batch_specifies(decoder, lora):
    model = encoder_with_head(decoder, lora=lora)
    vectors = pad(model.prompter(["some text", "and a longer text"], "query"), model.pad_id)
    embedded = model(vectors)
    for _ in range(2):
        for attention, same in (("causal", True), ("bidirectional", False)):
            losses = [nll_of_first_label(model, last, attention) for last in (10, 11)]
            assert torch.equal(*losses) is same
            torch.testing.assert_close(model(vectors), embedded, rtol=0, atol=0)


def test_a_causal_forward_does_not_change_the_saved_config(decoder, tmp_path):
    model = encoder_with_head(decoder)
    model(pad_labelled(model.prompter.label_completions(PAIRS, max_tokens=64), model.pad_id))
    save_encoder(model, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).is_causal is False


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_later_phase_loads_the_trained_head_or_else_its_base_s(decoder, tmp_path, lora):
    first = encoder_with_head(decoder, lora=lora)
    assert first.head.weight.requires_grad is (lora is None)
    if lora is None:
        first.head.weight.data += 1
    save_encoder(first, tmp_path / "first")
    second = create_encoder(
        str(tmp_path / "first"), space="t", options=ContractOptions(precision="float32"), lora=LORA
    )
    save_encoder(second, tmp_path / "second")
    for name in ("first", "second"):
        assert load_encoder(tmp_path / name).head is None
        loaded = load_encoder(tmp_path / name, trainable=True, head=True)
        assert torch.equal(loaded.head.weight, first.head.weight)
    assert not loaded.head.weight.requires_grad


def test_a_model_without_a_head_is_named(encoder):
    with pytest.raises(UserError, match="has no language model's head"):
        make_encoder(encoder, head=True)
