"""A pruned vocabulary keeps the vectors of texts of kept tokens, and can spell all others."""

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

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.tokens import prune
from stillroom.encoders.tokens.prune import count_tokens, evenly_spaced, prune_vocabulary
from stillroom.encoders.tokens.subwords import SUBWORD_MODELS
from stillroom.errors import UserError
from support.make_encoder import make_encoder
from support.tiny_models import (
    VOCABULARY,
    roberta_tokenizer,
    training_texts,
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
ROBERTA_SPECIAL = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
BASES = {
    "WordPiece": (lambda: BertModel(BertConfig(**SIZES)), word_piece_tokenizer),
    "BPE": (lambda: RobertaModel(RobertaConfig(**SIZES, **ROBERTA_SPECIAL)), roberta_tokenizer),
    "Unigram": (
        lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES, **ROBERTA_SPECIAL)),
        unigram_tokenizer,
    ),
}
# Longer ones, such as addresses, may be cut where a text of them is.
WORDS = sorted({word for text in training_texts() for word in text.split() if len(word) <= 40})
CORPUS = [" ".join(text.split()[:150]) for text in training_texts()]
PROMPTS = {"query": "find: ", "passage": ""}
SIZE = 620


@pytest.fixture(scope="module", params=BASES)
def base_and_student(request, tmp_path_factory):
    """A base, and the same model with fewer tokens, loaded from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model, tokenizer = BASES[request.param]
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    options = {"precision": "float32", "prompts": PROMPTS}
    base = make_encoder(folder, **options).eval()
    student = make_encoder(folder, **options, vocabulary_size=SIZE, texts=CORPUS)
    assert len(student.tokenizer) == SIZE
    assert base.parameters_total - student.parameters_total == (VOCABULARY - SIZE) * 32
    save_encoder(student, folder / "pruned")
    return base, load_encoder(folder / "pruned")


def encoder_tokens(encoder, text):
    return encoder.tokenizer.convert_ids_to_tokens(encoder.prompter([text], "query")[0].ids)


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_text_of_kept_tokens_has_the_same_tokens_and_the_very_same_vector(
    base_and_student, words
):
    base, student = base_and_student
    vocabulary = student.tokenizer.get_vocab()
    # Only the words whose tokens were all kept.
    text = " ".join(
        word for word in words if vocabulary.keys() >= {*encoder_tokens(base, f"a {word}")}
    )
    assert encoder_tokens(student, text) == encoder_tokens(base, text)
    np.testing.assert_array_equal(student.encode([text], "query"), base.encode([text], "query"))


def test_the_corpus_s_frequent_words_are_kept_and_most_others_are_not(base_and_student):
    base, student = base_and_student
    vocabulary = student.tokenizer.get_vocab()
    counts = count_tokens(base.tokenizer, CORPUS)
    names = base.tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    left_out = [i for i in range(VOCABULARY) if names[i] not in vocabulary]
    assert 300 < len(left_out) <= VOCABULARY - SIZE
    assert counts[left_out].sum() < 0.1 * counts.sum()
    assert {*base.tokenizer.all_special_tokens} <= vocabulary.keys()


@given(
    text=st.text(
        st.sampled_from("".join(training_texts())) | st.characters(codec="utf-8"), max_size=40
    )
)
@settings(max_examples=40, deadline=None)
def test_the_student_can_spell_what_its_base_can(base_and_student, text):
    base, student = base_and_student
    unknown = base.tokenizer.unk_token
    if unknown not in encoder_tokens(base, text):
        assert unknown not in encoder_tokens(student, text)
        texts = [
            encoder.tokenizer.decode(encoder.tokenizer(text)["input_ids"]).replace(" ##", "")
            for encoder in base_and_student
        ]
        assert texts[0] == texts[1]


def test_special_tokens_have_their_place_in_the_config_and_around_a_text(base_and_student):
    base, student = base_and_student
    pruned_ids, ids = (e.tokenizer("the model")["input_ids"] for e in (student, base))
    for position in (0, -1):
        tokens = [
            e.tokenizer.convert_ids_to_tokens(i[position])
            for e, i in ((student, pruned_ids), (base, ids))
        ]
        assert tokens[0] == tokens[1]
    assert student.backbone.config.pad_token_id == student.tokenizer.pad_token_id
    assert student.backbone.config.vocab_size == len(student.tokenizer) == SIZE


def test_the_folder_opens_in_plain_transformers(base_and_student, tmp_path):
    _, student = base_and_student
    save_encoder(student, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    batch = tokenizer(["find: the model of a tensor"], return_tensors="pt")
    states = model(input_ids=batch["input_ids"]).last_hidden_state
    vector = torch.nn.functional.normalize(states.mean(1), dim=-1).detach()
    ours = student.encode(["the model of a tensor"], "query")
    np.testing.assert_allclose(vector.numpy(), ours, atol=1e-6)


def test_a_merged_token_keeps_the_tokens_it_is_merged_from():
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "cab"])},
        "merges": [["b", "c"], ["a", "bc"], ["a", "b"], ["c", "ab"]],
    }
    subwords = SUBWORD_MODELS["BPE"](model)
    # Through "bc", which is merged before "ab".
    assert subwords.merged_from("abc") == {0, 1, 2, 4, 5}
    assert subwords.merged_from("cab") == {0, 1, 2, 3, 6}
    kept_vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "bc", "abc"])}
    assert subwords.renumbered(kept_vocabulary) == {
        "type": "BPE", "vocab": kept_vocabulary, "merges": [["b", "c"], ["a", "bc"]],
    }  # fmt: skip


def test_equally_frequent_tokens_are_kept_in_the_order_of_their_ids():
    tokenizer = word_piece_tokenizer()
    counts = np.zeros(VOCABULARY, dtype=int)
    counts[VOCABULARY - 1] = 1
    ids = prune_vocabulary(tokenizer, SIZE, counts).ids
    others = prune_vocabulary(tokenizer, SIZE - 1, counts).ids
    assert VOCABULARY - 1 in others
    [last] = {*ids.tolist()} - {*others.tolist()}
    dropped = {*range(VOCABULARY)} - {*ids.tolist()}
    assert last == min({*dropped, last})


def test_tokens_are_counted_in_evenly_spaced_texts(monkeypatch):
    assert [*evenly_spaced(8, 8)] == [*range(8)]
    assert [*evenly_spaced(9, 8)] == [0, 2, 4, 6, 8]
    assert [*evenly_spaced(100, 8)] == [0, 16, 32, 48, 64, 80, 96]
    monkeypatch.setattr(prune, "MAX_COUNTED_TEXTS", 2)
    monkeypatch.setattr(prune, "CHUNK", 1)
    tokenizer = word_piece_tokenizer()
    counts = count_tokens(tokenizer, ["model", "the", "model of", "the"])
    ids = tokenizer("model model of", add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(counts, np.bincount(ids, minlength=VOCABULARY))


# --- what users can cause -------------------------------------------------------------------


def test_too_few_and_too_many_tokens_are_refused_with_a_number():
    counts = np.zeros(VOCABULARY, dtype=int)
    with pytest.raises(
        UserError, match=r"student.vocabulary_size: 20: \d+ tokens are needed"
    ) as error:
        prune_vocabulary(word_piece_tokenizer(), 20, counts)
    least = int(error.value.args[2].split()[1])
    assert len(prune_vocabulary(word_piece_tokenizer(), least, counts).ids) == least
    with pytest.raises(UserError, match="the base has 1000 tokens"):
        prune_vocabulary(word_piece_tokenizer(), VOCABULARY, counts)


def test_a_word_level_tokenizer_is_refused_by_its_kind():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(UserError, match="of the kind WordLevel cannot be narrowed"):
        prune_vocabulary(tokenizer, 2, np.zeros(3))


def test_merges_with_end_of_word_marks_are_refused():
    content = json.loads(roberta_tokenizer().backend_tokenizer.to_str())
    content["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(UserError, match="end_of_word_suffix cannot be narrowed"):
        SUBWORD_MODELS["BPE"](content["model"])
