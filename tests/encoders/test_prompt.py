import pytest
import torch

from stillroom.encoders.contract import Contract
from stillroom.encoders.prompt import Prompter, Tokens, pad
from tiny import byte_pair_tokenizer, word_piece_tokenizer

LONG = "many words follow one another here, and they never seem to come to an end at all " * 5


def contract(**changes):
    fields = {
        "base": "b",
        "architecture": "decoder",
        "attention": "bidirectional",
        "pooling": "last",
        "append_eos": True,
        "max_tokens": 24,
        "dims": (64,),
        "space": "s",
    }
    return Contract(**{**fields, **changes})


@pytest.mark.parametrize("text", ["", "short", LONG])
@pytest.mark.parametrize("prompt", ["", "Instruct: find it\nQuery: "])
def test_a_text_ends_in_eos_cut_or_not_and_is_never_too_long(text, prompt):
    tokenizer = byte_pair_tokenizer()
    prompter = Prompter(tokenizer, contract(prompts={"query": prompt}))
    [tokens] = prompter([text], "query")
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert tokens.ids.count(tokenizer.eos_token_id) == 1
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert len(tokens.ids) <= 24


def test_without_eos_in_the_contract_a_decoder_s_text_has_none():
    tokenizer = byte_pair_tokenizer()
    [tokens] = Prompter(tokenizer, contract(append_eos=False))(["short"], "passage")
    assert tokenizer.eos_token_id not in tokens.ids


@pytest.mark.parametrize("text", ["short", LONG])
def test_an_encoder_s_text_keeps_cls_and_sep_cut_or_not(text):
    tokenizer = word_piece_tokenizer()
    prompter = Prompter(tokenizer, contract(architecture="encoder", append_eos=False))
    [tokens] = prompter([text], "passage")
    assert tokens.ids == tokenizer(text, truncation=True, max_length=24)["input_ids"]


def test_each_role_has_its_own_prompt_letter_for_letter():
    tokenizer = byte_pair_tokenizer()
    prompts = {"query": "Instruct: find\nQuery: ", "passage": "Passage: "}
    prompter = Prompter(tokenizer, contract(prompts=prompts, max_tokens=99))
    for role, prompt in prompts.items():
        [tokens] = prompter(["a text"], role)
        assert tokenizer.decode(tokens.ids) == f"<s>{prompt}a text</s>"


def test_an_instruction_takes_the_place_of_the_query_s_prompt():
    tokenizer = byte_pair_tokenizer()
    prompter = Prompter(tokenizer, contract(prompts={"query": "find: "}, max_tokens=99))
    [tokens] = prompter(["a text"], "query", instruction="Find a duplicate")
    decoded = tokenizer.decode(tokens.ids)
    assert decoded == "<s>Instruct: Find a duplicate\nQuery: a text</s>"


def test_the_prompt_s_tokens_can_be_left_out_of_pooling():
    tokenizer = byte_pair_tokenizer()
    prompt = "Instruct: find\nQuery: "
    prompter = Prompter(tokenizer, contract(prompts={"query": prompt}, max_tokens=99))
    [tokens] = prompter(["text"], "query")
    batch = pad([tokens], 2, pool_prompt=False)
    pooled = batch.ids_bl[batch.pool_mask_bl.bool()]
    assert tokenizer.decode(pooled).removesuffix("</s>").strip() == "text"
    assert pad([tokens], 2, pool_prompt=True).pool_mask_bl.all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_hides_nothing_and_adds_nothing(side):
    tokens = [Tokens([5, 6, 7], 1), Tokens([8], 0)]
    batch = pad(tokens, 2, side=side, pool_prompt=False)
    assert batch.ids_bl.shape == (2, 3)
    for row, one in enumerate(tokens):
        assert batch.ids_bl[row][batch.mask_bl[row].bool()].tolist() == one.ids
    assert batch.pool_mask_bl.sum(1).tolist() == [2, 1]


def test_a_text_that_is_nothing_but_prompt_is_still_pooled():
    batch = pad([Tokens([5, 6], 2)], 2, pool_prompt=False)
    assert torch.equal(batch.pool_mask_bl, batch.mask_bl)
