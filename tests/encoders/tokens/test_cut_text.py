"""A long text is cut before it is tokenised only where its first tokens stay the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillroom.encoders.tokens import cut_text, open_end
from stillroom.encoders.tokens.cut_text import TextCutter
from support.tiny_models import tiny_decoder, tiny_encoder, training_texts, unigram_tokenizer

# As Llama 3, Qwen and many others split; punctuation takes the line ends after it.
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS = {
    "as it is": None,
    "GPT-4": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "XLM-R": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"bpe": tiny_decoder(folder / "d"), "wordpiece": tiny_encoder(folder / "e")}


def read_tokenizer(folder, pre_tokenizer=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pre_tokenizer is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def first_tokens(tokenizer, text, count):
    return tokenizer(text, add_special_tokens=False)["input_ids"][:count]


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_tokens_that_are_kept_are_those_of_the_whole_text(folders, monkeypatch, kind, splitter):
    tokenizer = read_tokenizer(folders[kind], SPLITTERS[splitter])
    monkeypatch.setattr(cut_text, "LONG_CHARACTERS", 8)
    monkeypatch.setattr(cut_text, "SHORTEST_CUT", 8)
    monkeypatch.setattr(cut_text, "CHARACTERS_PER_TOKEN", 1)
    cutter, shorter = TextCutter(tokenizer), []
    words = st.lists(
        st.text(st.sampled_from("aebdlist.'-(1é漢́\n\r\t  \u00a0"), min_size=1), min_size=8
    )

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(texts=words, tokens=st.integers(1, 12))
    def check(texts, tokens):
        text = " ".join(texts)
        beginning = cutter.cut(text, tokens)
        assert text.startswith(beginning)
        assert first_tokens(tokenizer, beginning, tokens) == first_tokens(tokenizer, text, tokens)
        shorter.append(len(beginning) < len(text))

    check()
    assert any(shorter)


def test_of_four_million_characters_no_more_than_needed_is_tokenised(folders):
    cutter = TextCutter(read_tokenizer(folders["wordpiece"]))
    assert len(cutter.cut("some words " * 400_000, 32)) < 11_000


def sentencepiece_bpe():
    """As Mistral's: a text is one piece, and letters without a token are bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *bytes_], max_token_length=12, show_progress=False
    )
    words = [word for text in training_texts() for word in text.split()]
    tokenizer.train_from_iterator([" ".join(words[n : n + 3]) for n in range(3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def kinds(folders):
    return {
        "bpe": read_tokenizer(folders["bpe"]),
        "bpe, GPT-4": read_tokenizer(folders["bpe"], SPLITTERS["GPT-4"]),
        "wordpiece": read_tokenizer(folders["wordpiece"]),
        "unigram": unigram_tokenizer(),
        "one piece, bpe": sentencepiece_bpe(),
    }


SCRIPTS = {
    "one letter": "a",
    "two letters": "ab",
    "Latin": "eationsthér",
    "Chinese": "漢字的一是不了人我在有他这中大来上国",
    "base64": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP0123456789+/",
    "Thai and marks": "กขคงจฉกำากิกี็่้",
    "Devanagari": "कखगक्षिीुूं",
    "Korean": "가나다라각ㄱᄀ\u1161\u11a8",
    "Japanese": "がぎか\u3099カガｶﾞー",
    "emoji": "👩‍👩‍👧😀🇩🇪🇫🇷",
    "spaces and signs": "a  \n\t.,'s!?",
    "tokens' names": "[]<>UNKs/pad",
    "all": "ab漢字ไทย가é́ 0.'é\u200d👧\n",
}


@pytest.mark.parametrize("kind", ["bpe", "bpe, GPT-4", "wordpiece", "unigram", "one piece, bpe"])
def test_a_text_without_spaces_keeps_the_tokens_of_the_whole_text(kinds, monkeypatch, kind):
    monkeypatch.setattr(cut_text, "LONG_CHARACTERS", 40)
    monkeypatch.setattr(cut_text, "SHORTEST_CUT", 40)
    monkeypatch.setattr(cut_text, "CHARACTERS_PER_TOKEN", 1)
    monkeypatch.setattr(cut_text, "LONGEST_WORD", 20)
    monkeypatch.setattr(open_end, "LONGEST_ADDED", 16)
    cutter, shorter = TextCutter(kinds[kind]), set()
    scripts = st.sampled_from(sorted(SCRIPTS))

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(data=st.data(), script=scripts, tokens=st.integers(1, 40), times=st.integers(1, 30))
    def check(data, script, tokens, times):
        part = st.text(st.sampled_from(SCRIPTS[script]), min_size=1)
        text = data.draw(part) * times + data.draw(part) + data.draw(part) * times
        beginning = cutter.cut(text, tokens)
        tokenizer = kinds[kind]
        assert first_tokens(tokenizer, beginning, tokens) == first_tokens(tokenizer, text, tokens)
        if len(beginning) < len(text):
            shorter.add(script)

    check()
    assert len(shorter) >= 3


@pytest.mark.parametrize("kind", ["bpe", "bpe, GPT-4", "unigram", "one piece, bpe", "wordpiece"])
@pytest.mark.parametrize("script", ["one letter", "Chinese", "base64"])
def test_of_a_long_text_without_spaces_no_more_than_needed_is_tokenised(kinds, kind, script):
    letters = SCRIPTS[script]
    text = "".join(letters[n * n % 7919 % len(letters)] for n in range(300_000))
    assert len(TextCutter(kinds[kind]).cut(text, 32)) < 50_000


def test_a_word_that_is_too_long_for_a_vocabulary_stays_unknown(kinds):
    tokenizer = kinds["wordpiece"]
    for word in ("a" * 101, "a" * 40_000, "é" * 40_000, "ก็" * 30_000):
        text = f"some {word} words"
        beginning = TextCutter(tokenizer).cut(text, 9)
        assert first_tokens(tokenizer, beginning, 9) == first_tokens(tokenizer, text, 9)
        assert len(beginning) < 1000 or len(text) < 20_000


@pytest.mark.parametrize("joins", ["an unknown splitter", "cases", "an added token"])
def test_a_tokenizer_that_may_join_words_gets_the_whole_text(folders, joins):
    tokenizer = read_tokenizer(folders["bpe"])
    backend = tokenizer.backend_tokenizer
    if joins == "an added token":
        tokenizer.add_tokens([AddedToken("new york " * 5)])
    elif joins == "cases":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{Lu} ]*[\p{Ll} ]+"), "isolated")
    else:
        backend.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    text = "some words " * 10_000
    assert TextCutter(tokenizer).cut(text, 3) == text
