"""A narrower vocabulary changes nothing for texts of kept tokens, and can spell all the others."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.tokens import prune as vocabulary
from stillroom.encoders.tokens.prune import count, evenly, narrow
from stillroom.encoders.tokens.subwords import KINDS
from stillroom.errors import UserError
from support.tiny_models import (
    VOCABULARY,
    _texts,
    roberta_tokenizer,
    unigram_tokenizer,
    word_piece_tokenizer,
)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
FOUR = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
BASES = {
    "WordPiece": (lambda: BertModel(BertConfig(**SIZES)), word_piece_tokenizer),
    "BPE": (lambda: RobertaModel(RobertaConfig(**SIZES, **FOUR)), roberta_tokenizer),
    "Unigram": (lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES, **FOUR)), unigram_tokenizer),
}
WORDS = sorted({word for text in _texts() for word in text.split()})
CORPUS = [" ".join(text.split()[:150]) for text in _texts()]
PROMPTS = {"query": "find: ", "passage": ""}
SIZE = 620


@pytest.fixture(scope="module", params=BASES)
def base_and_student(request, tmp_path_factory):
    """A base and what it is with fewer tokens, loaded again from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model, tokenizer = BASES[request.param]
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    options = {"space": "s", "pooling": "mean", "precision": "float32", "prompts": PROMPTS}
    base = create(str(folder), **options).eval()
    student = create(str(folder), **options, vocabulary=SIZE, texts=CORPUS)
    assert len(student.tokenizer) == SIZE
    assert base.parameters_total - student.parameters_total == (VOCABULARY - SIZE) * 32
    save(student, folder / "narrowed")
    return base, load(folder / "narrowed")


def spelled(encoder, text):
    return encoder.tokenizer.convert_ids_to_tokens(encoder.prompter([text], "query")[0].ids)


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_text_of_kept_tokens_has_the_same_tokens_and_the_very_same_vector(
    base_and_student, words
):
    base, student = base_and_student
    kept = student.tokenizer.get_vocab()
    # Of what was drawn, the words that are made of kept tokens wherever they stand.
    text = " ".join(word for word in words if kept.keys() >= {*spelled(base, f"a {word}")})
    assert spelled(student, text) == spelled(base, text)
    np.testing.assert_array_equal(student.encode([text], "query"), base.encode([text], "query"))


def test_the_corpus_s_frequent_words_are_kept_and_most_others_are_not(base_and_student):
    base, student = base_and_student
    kept = student.tokenizer.get_vocab()
    counts = count(base.tokenizer, CORPUS)
    names = base.tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    left_out = [i for i in range(VOCABULARY) if names[i] not in kept]
    assert 300 < len(left_out) <= VOCABULARY - SIZE
    assert counts[left_out].sum() < 0.1 * counts.sum()
    assert {*base.tokenizer.all_special_tokens} <= kept.keys()


@given(text=st.text(st.sampled_from("".join(_texts())) | st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=40, deadline=None)
def test_what_the_base_can_spell_the_student_can(base_and_student, text):
    base, student = base_and_student
    unknown = base.tokenizer.unk_token
    if unknown not in spelled(base, text):
        assert unknown not in spelled(student, text)
        texts = [
            encoder.tokenizer.decode(encoder.tokenizer(text)["input_ids"]).replace(" ##", "")
            for encoder in base_and_student
        ]
        assert texts[0] == texts[1]


def test_special_tokens_have_their_place_in_the_config_and_around_a_text(base_and_student):
    base, student = base_and_student
    narrow_ids, ids = (e.tokenizer("the model")["input_ids"] for e in (student, base))
    for place in (0, -1):
        tokens = [
            e.tokenizer.convert_ids_to_tokens(i[place])
            for e, i in ((student, narrow_ids), (base, ids))
        ]
        assert tokens[0] == tokens[1]
    assert student.backbone.config.pad_token_id == student.tokenizer.pad_token_id
    assert student.backbone.config.vocab_size == len(student.tokenizer) == SIZE


def test_the_folder_opens_in_plain_transformers(base_and_student, tmp_path):
    _, student = base_and_student
    save(student, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    batch = tokenizer(["find: the model of a tensor"], return_tensors="pt")
    states = model(input_ids=batch["input_ids"]).last_hidden_state
    vector = torch.nn.functional.normalize(states.mean(1), dim=-1).detach()
    ours = student.encode(["the model of a tensor"], "query")
    np.testing.assert_allclose(vector.numpy(), ours, atol=1e-6)


def test_merges_keep_what_they_are_merged_from():
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "cab"])},
        "merges": [["b", "c"], ["a", "bc"], ["a", "b"], ["c", "ab"]],
    }
    spelling = KINDS["BPE"](model)
    # By way of "bc", which is merged before "ab", although "ab" would do as well.
    assert spelling.parts("abc") == {0, 1, 2, 4, 5}
    assert spelling.parts("cab") == {0, 1, 2, 3, 6}
    new = {token: i for i, token in enumerate(["a", "b", "c", "bc", "abc"])}
    assert spelling.rewritten(new) == {
        "type": "BPE", "vocab": new, "merges": [["b", "c"], ["a", "bc"]],
    }  # fmt: skip


def test_equally_frequent_tokens_are_kept_in_the_order_of_their_ids():
    tokenizer = word_piece_tokenizer()
    counts = np.zeros(VOCABULARY, dtype=int)
    counts[VOCABULARY - 1] = 1
    ids = narrow(tokenizer, SIZE, counts).ids
    others = narrow(tokenizer, SIZE - 1, counts).ids
    assert VOCABULARY - 1 in others
    [last] = {*ids.tolist()} - {*others.tolist()}
    left = {*range(VOCABULARY)} - {*ids.tolist()}
    assert last == min({*left, last})


def test_counts_are_of_evenly_many_texts(monkeypatch):
    assert evenly(map(str, range(8)), 8) == list("01234567")
    assert evenly(map(str, range(9)), 8) == list("02468")
    assert evenly(map(str, range(100)), 8) == ["0", "16", "32", "48", "64", "80", "96"]
    monkeypatch.setattr(vocabulary, "MOST_TEXTS", 2)
    monkeypatch.setattr(vocabulary, "CHUNK", 1)
    tokenizer = word_piece_tokenizer()
    counts = count(tokenizer, ["model", "the", "model of", "the"])
    ids = tokenizer("model model of", add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(counts, np.bincount(ids, minlength=VOCABULARY))


# --- what users can cause -------------------------------------------------------------------


def test_too_few_and_too_many_tokens_are_refused_with_a_number():
    counts = np.zeros(VOCABULARY, dtype=int)
    with pytest.raises(UserError, match=r"student.vocabulary: 20: \d+ tokens are needed") as fault:
        narrow(word_piece_tokenizer(), 20, counts)
    least = int(fault.value.args[2].split()[1])
    assert len(narrow(word_piece_tokenizer(), least, counts).ids) == least
    with pytest.raises(UserError, match="the base has 1000 tokens"):
        narrow(word_piece_tokenizer(), VOCABULARY, counts)


def test_a_tokenizer_that_knows_words_alone_is_refused_by_its_kind():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(UserError, match="of the kind WordLevel cannot be narrowed"):
        narrow(tokenizer, 2, np.zeros(3))


def test_merges_with_marks_at_words_ends_are_refused():
    content = json.loads(roberta_tokenizer().backend_tokenizer.to_str())
    content["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(UserError, match="end_of_word_suffix cannot be narrowed"):
        KINDS["BPE"](content["model"])
