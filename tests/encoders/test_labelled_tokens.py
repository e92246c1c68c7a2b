"""What predicted tokens cost is what transformers' own language model says they cost."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.tokens.prompter import NO_TARGET, Cloze, pad, pad_clozes
from stillroom.errors import UserError

PAIRS = [
    ("What is a still?", " A vessel in which a liquid is made to boil, and its steam to cool."),
    ("Short?", " Yes."),
    ("", "a completion that nothing came before"),
]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


@pytest.fixture(scope="module")
def tied(decoder, tmp_path_factory):
    """A decoder whose head is its embedding, and so not in its file."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(decoder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(decoder).save_pretrained(folder)
    return folder


def predicting(folder, attention="bidirectional", **changes):
    return create(
        str(folder), space="s", attention=attention, pooling="mean", precision="float32",
        head=True, **changes,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_generation_costs_what_the_language_model_s_own_logits_say(decoder, tied, kind, attention):
    folder = tied if kind == "tied" else decoder
    model = predicting(folder, attention)
    clozes = model.prompter.to_generate(PAIRS, max_tokens=64)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for cloze in clozes:
        log_probabilities = theirs(input_ids=torch.tensor([cloze.ids])).logits[0].log_softmax(-1)
        expected.append(
            -sum(
                log_probabilities[i, target]
                for i, target in enumerate(cloze.targets)
                if target != NO_TARGET
            )
        )
    batch = pad_clozes(clozes, model.pad_id)
    assert not batch.mask_bl.all()
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-5, atol=1e-5)


def first_target(model, last, attention):
    """The first token's prediction alone, of a text that ends in `last`; beside a longer one."""
    cloze = Cloze([5, 6, 7, 8, last], [9] + [NO_TARGET] * 4, attention)
    longer = Cloze([5] * 8, [NO_TARGET] * 8, attention)
    return model(pad_clozes([cloze, longer], model.pad_id))[0]


@pytest.mark.parametrize("lora", [None, LORA])
def test_one_encoder_looks_ahead_or_does_not_as_each_batch_asks(decoder, lora):
    model = predicting(decoder, lora=lora)
    vectors = pad(model.prompter(["some text", "and a longer text"], "query"), model.pad_id)
    embedded = model(vectors)
    for _ in range(2):
        for attention, same in (("causal", True), ("bidirectional", False)):
            costs = [first_target(model, last, attention) for last in (10, 11)]
            assert torch.equal(*costs) is same
            torch.testing.assert_close(model(vectors), embedded, rtol=0, atol=0)


def test_what_was_generated_last_does_not_change_what_is_saved(decoder, tmp_path):
    model = predicting(decoder)
    model(pad_clozes(model.prompter.to_generate(PAIRS, max_tokens=64), model.pad_id))
    save(model, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).is_causal is False


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_later_phase_finds_the_head_that_was_trained_or_else_its_base_s(decoder, tmp_path, lora):
    first = predicting(decoder, lora=lora)
    assert first.head.weight.requires_grad is (lora is None)
    if lora is None:
        first.head.weight.data += 1
    save(first, tmp_path / "first")
    second = create(str(tmp_path / "first"), space="t", lora=LORA, precision="float32")
    save(second, tmp_path / "second")
    for name in ("first", "second"):
        assert load(tmp_path / name).head is None
        again = load(tmp_path / name, trainable=True, head=True)
        assert torch.equal(again.head.weight, first.head.weight)
    assert not again.head.weight.requires_grad


def test_a_model_without_a_head_is_named(encoder):
    with pytest.raises(UserError, match="has no language model's head"):
        create(str(encoder), space="s", pooling="mean", head=True)
