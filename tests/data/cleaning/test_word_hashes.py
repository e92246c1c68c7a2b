import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.data.cleaning import word_hashes as module
from stillroom.data.cleaning.word_hashes import hash_words, split_words

SCRIPTS = st.text(
    st.one_of(
        st.sampled_from("abcZß1 2.,'’-+#\n\t€²ﬁ́\u200b\uffff\x00😀"),
        st.characters(),
        st.characters(min_codepoint=0x0E00, max_codepoint=0x0EFF),
        st.characters(min_codepoint=0x3000, max_codepoint=0x9FFF),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(SCRIPTS, max_size=8))
@example(texts=["c++ c+++d #x c#", "", "don’t", "a\uffffb"])
def test_hashes_correspond_to_the_split_words(texts):
    hashed = hash_words(texts)
    word_lists = [split_words(text) for text in texts]
    assert hashed.counts.tolist() == [len(words) for words in word_lists]
    hash_of_word = {}
    for i, words in enumerate(word_lists):
        hashes = hashed.hashes[hashed.starts[i] : hashed.starts[i + 1]].tolist()
        for word, number in zip(words, hashes, strict=True):
            assert hash_of_word.setdefault(word, number) == number
            assert number % 2 == any(char.isdigit() or char in "+#" for char in word)
    assert len(set(hash_of_word.values())) == len(hash_of_word)
    keys = {}
    for words, key in zip(word_lists, hashed.keys.tolist(), strict=True):
        assert keys.setdefault(key, "".join(words)) == "".join(words)
    assert len({"".join(words) for words in word_lists}) == len(keys)


def test_the_hashes_of_a_text_do_not_depend_on_the_other_texts(monkeypatch):
    texts = ["one two three", "四五 six", "", "7 + eight’s", "one  TWO\nthree!"] * 3
    at_once = hash_words(texts)
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 12)
    in_chunks = hash_words(texts)
    for expected, result in zip(vars(at_once).values(), vars(in_chunks).values(), strict=True):
        assert expected.tolist() == result.tolist()


def test_case_and_punctuation_are_ignored_and_other_differences_kept():
    same = ["The data-base, isn't IT?", "ｔｈｅ data base isn’t it", "THE DATA BASE ISNT IT\n"]
    assert len({tuple(split_words(text)) for text in same}) == 1
    assert len(set(hash_words([*same, "the database isnt it"]).keys.tolist())) == 1
    other = ["C", "C++", "C#", "€5", "5", "५", "naive", "naïve"]
    assert len(set(hash_words(other).keys.tolist())) == len(other)
    assert split_words("北京大学 is") == ["北", "京", "大", "学", "is"]
    assert split_words(unicodedata.normalize("NFD", "naïve")) == ["naïve"]
