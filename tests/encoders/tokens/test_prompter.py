import pytest
import torch

from stillroom.encoders.contract import Contract
from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens, Tokens, pad, pad_labelled
from stillroom.encoders.tokens.prompter import Prompter, instruct_prompt
from stillroom.encoders.tokens.special_tokens import append_eos
from stillroom.errors import UserError
from support.tiny_models import byte_pair_tokenizer, word_piece_tokenizer

LONG = "many words follow one another here, and they never seem to come to an end at all " * 5


def tokenizer_with_end():
    return append_eos(byte_pair_tokenizer())


def contract(**changes):
    fields = {
        "base": "b",
        "architecture": "decoder",
        "attention": "bidirectional",
        "pooling": "last",
        "max_tokens": 24,
        "dims": (64,),
        "space": "s",
    }
    return Contract(**{**fields, **changes})


@pytest.mark.parametrize("text", ["", "short", LONG])
@pytest.mark.parametrize("prompt", ["", "Instruct: find it\nQuery: "])
def test_a_text_ends_in_the_template_s_end_cut_or_not_and_is_never_too_long(text, prompt):
    tokenizer = tokenizer_with_end()
    prompter = Prompter(tokenizer, contract(prompts={"query": prompt}))
    [tokens] = prompter([text], "query")
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert tokens.ids.count(tokenizer.eos_token_id) == 1
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert len(tokens.ids) <= 24


def test_a_decoder_whose_template_has_no_end_gets_none():
    tokenizer = byte_pair_tokenizer()
    [tokens] = Prompter(tokenizer, contract())(["short"], "passage")
    assert tokenizer.eos_token_id not in tokens.ids


@pytest.mark.parametrize("text", ["short", LONG])
def test_an_encoder_s_text_keeps_cls_and_sep_cut_or_not(text):
    tokenizer = word_piece_tokenizer()
    prompter = Prompter(tokenizer, contract(architecture="encoder"))
    [tokens] = prompter([text], "passage")
    assert tokens.ids == tokenizer(text, truncation=True, max_length=24)["input_ids"]


def test_each_role_has_its_own_prompt_exactly_as_written():
    tokenizer = tokenizer_with_end()
    prompts = {"query": "Instruct: find\nQuery: ", "passage": "Passage: "}
    prompter = Prompter(tokenizer, contract(prompts=prompts, max_tokens=99))
    for role, prompt in prompts.items():
        [tokens] = prompter(["a text"], role)
        assert tokenizer.decode(tokens.ids) == f"<s>{prompt}a text</s>"


def test_a_task_s_instruction_replaces_the_query_s_prompt():
    tokenizer = tokenizer_with_end()
    prompter = Prompter(tokenizer, contract(prompts={"query": "find: "}, max_tokens=99))
    prompt = instruct_prompt("Find a duplicate")
    [tokens] = prompter(["a text"], "query", prompt=prompt)
    assert tokenizer.decode(tokens.ids) == "<s>Instruct: Find a duplicate\nQuery: a text</s>"
    text = tokenizer("a text", add_special_tokens=False)["input_ids"]
    [from_ids] = prompter.from_ids([text], "query", prompt=prompt)
    assert tokenizer.decode(from_ids.ids) == tokenizer.decode(tokens.ids)


@pytest.mark.parametrize("given_ids", [False, True])
def test_the_prompt_s_tokens_can_be_left_out_of_pooling(given_ids):
    tokenizer = tokenizer_with_end()
    fields = {"prompts": {"query": "Instruct: find\nQuery: "}, "max_tokens": 99}

    def pooled(pool_prompt):
        prompter = Prompter(tokenizer, contract(**fields, pool_prompt=pool_prompt))
        if given_ids:
            text = tokenizer("text", add_special_tokens=False)["input_ids"]
            [tokens] = prompter.from_ids([text], "query")
        else:
            [tokens] = prompter(["text"], "query")
        batch = pad([tokens], tokenizer.pad_token_id)
        return tokenizer.decode(batch.ids_bl[batch.pool_mask_bl.bool()])

    assert pooled(False).strip() == "text</s>"
    assert pooled(True) == "<s>Instruct: find\nQuery: text</s>"


def test_a_text_is_refused_without_all_of_it_being_tokenised(monkeypatch):
    tokenizer = word_piece_tokenizer()
    prompter, read = Prompter(tokenizer, contract()), []
    call = type(tokenizer).__call__

    def record(self, texts, **options):
        read.extend([texts] if isinstance(texts, str) else texts)
        return call(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", record)
    with pytest.raises(UserError, match=r"takes at least \d+ tokens, and \d+ is the most"):
        prompter(["some words " * 400_000], "passage", overlong="refuse")
    assert sum(map(len, read)) < 25_000


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_hides_no_token_and_adds_none(side):
    tokens = [Tokens([5, 6, 7], 1), Tokens([8], 0)]
    batch = pad(tokens, 2, side=side)
    assert batch.ids_bl.tolist() == [[5, 6, 7], [2, 2, 8] if side == "left" else [8, 2, 2]]
    for row, text in enumerate(tokens):
        assert batch.ids_bl[row][batch.mask_bl[row].bool()].tolist() == text.ids
        assert (
            batch.ids_bl[row][batch.pool_mask_bl[row].bool()].tolist() == text.ids[text.pool_from :]
        )


def test_padded_labels_are_ignored():
    labelled = [
        LabelledTokens([5], [8], "causal"),
        LabelledTokens([5, 6, 7], [6, IGNORE_INDEX, 9], "causal"),
    ]
    batch = pad_labelled(labelled, 2)
    assert batch.ids_bl.tolist() == [[5, 2, 2], [5, 6, 7]]
    assert batch.labels_bl.tolist() == [[8, IGNORE_INDEX, IGNORE_INDEX], [6, IGNORE_INDEX, 9]]


@pytest.mark.parametrize("given_ids", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(echo, given_ids):
    prompter = Prompter(tokenizer_with_end(), contract(echo=echo, prompts={"query": LONG}))
    with pytest.raises(UserError, match="prompt and text together may have 22"):
        prompter.from_ids([[5]], "query") if given_ids else prompter(["cut off"], "query")


def test_an_empty_text_behind_a_prompt_is_still_pooled():
    tokenizer = byte_pair_tokenizer()
    fields = {"prompts": {"query": "find: "}, "pool_prompt": False}
    [tokens] = Prompter(tokenizer, contract(**fields))([""], "query")
    batch = pad([tokens], tokenizer.pad_token_id)
    assert torch.equal(batch.pool_mask_bl, batch.mask_bl)


# --- echo -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given_ids", [False, True])
@pytest.mark.parametrize("text", ["short", LONG])
@pytest.mark.parametrize("prompt", ["", "find: "])
def test_an_echo_repeats_the_text_cut_or_not_and_only_the_echo_is_pooled(prompt, text, given_ids):
    tokenizer = tokenizer_with_end()
    prompter = Prompter(tokenizer, contract(echo=True, prompts={"query": prompt}))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    [tokens] = prompter.from_ids([ids], "query") if given_ids else prompter([text], "query")
    assert len(tokens.ids) <= 24
    assert tokens.ids[-1] == tokenizer.eos_token_id
    second = tokens.ids[tokens.pool_from : -1]
    first = tokens.ids[tokens.pool_from - len(second) : tokens.pool_from]
    assert first == second == ids[: len(second)]
    before = tokens.ids[1 : tokens.pool_from - len(second)]
    assert before == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    # The text is cut only if there was no room for more.
    room_left = 24 - len(tokens.ids)
    assert len(second) == len(ids) or room_left < 2


def test_an_empty_text_echoes_as_its_eos():
    tokenizer = tokenizer_with_end()
    prompter = Prompter(tokenizer, contract(echo=True, prompts={"query": "find: "}))
    [tokens] = prompter([""], "query")
    assert tokens.ids[tokens.pool_from :] == [tokenizer.eos_token_id]


# --- completions ----------------------------------------------------------------------------


def test_only_a_completion_and_its_eos_are_predicted_each_by_the_token_before_it():
    tokenizer = tokenizer_with_end()
    prompter = Prompter(tokenizer, contract())
    [text] = prompter.label_completions([("a question", " and its answer")], max_tokens=99)
    assert tokenizer.decode(text.ids) == "<s>a question and its answer</s>"
    predicted = [i for i, label in enumerate(text.labels) if label != IGNORE_INDEX]
    assert tokenizer.decode([text.labels[i] for i in predicted]) == " and its answer</s>"
    assert [text.labels[i] for i in predicted] == [text.ids[i + 1] for i in predicted]
    assert text.attention == "causal"


@pytest.mark.parametrize("prompt", ["", "short", LONG])
@pytest.mark.parametrize("completion", ["", "short", LONG])
def test_a_completion_gets_half_of_the_tokens_and_a_cut_one_has_no_eos(prompt, completion):
    tokenizer = tokenizer_with_end()
    [text] = Prompter(tokenizer, contract()).label_completions(
        [(prompt, completion)], max_tokens=20
    )
    assert len(text.ids) == len(text.labels) <= 20
    labels = [label for label in text.labels if label != IGNORE_INDEX]
    full_completion = [
        *tokenizer(completion, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert labels == full_completion[: len(labels)]
    assert len(labels) >= min(len(full_completion), 9)
    before = text.ids[: len(text.ids) - len(labels)]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert before[0] == tokenizer.bos_token_id
    # The end of the prompt is kept.
    assert before[1:] == prompt_ids[len(prompt_ids) - len(before) + 1 :]
