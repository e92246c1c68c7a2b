"""A long text is cut before it is tokenised only where its first tokens stay the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from stillroom.encoders.tokens import cut_text
from stillroom.encoders.tokens.cut_text import TextCutter
from support.tiny_models import tiny_decoder, tiny_encoder

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


@pytest.mark.parametrize("joins", ["Metaspace without a split", "no splitter", "an added token"])
def test_a_tokenizer_that_may_join_words_gets_the_whole_text(folders, joins):
    tokenizer = read_tokenizer(folders["bpe"])
    backend = tokenizer.backend_tokenizer
    if joins == "an added token":
        tokenizer.add_tokens([AddedToken("new york")])
    elif joins == "no splitter":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    text = "some words " * 10_000
    assert TextCutter(tokenizer).cut(text, 3) == text
