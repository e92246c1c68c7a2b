"""Documents are cut into passages that fit a model, and no text is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.readers.documents import halve_to_fit, read_document, split_paragraphs
from stillroom.encoders.tokens.count import token_counter
from stillroom.errors import UserError
from support.tiny_models import byte_pair_tokenizer, word_piece_tokenizer

TEXT = """# Distilling

Water boils. What boils first is poured away, what comes then is kept.

The still's head is cooled.
It must not crack.

## Bottling

Bottles are boiled, dried, and filled to the neck.
"""


def words(text):
    return len(text.split())


@pytest.fixture
def read(tmp_path):
    def read(text, name="a.md", count_tokens=words, **options):
        (tmp_path / name).write_text(text)
        return list(read_document(str(tmp_path / name), count_tokens=count_tokens, **options))

    return read


def test_passages_are_whole_paragraphs_and_a_heading_stays_with_what_follows(read):
    assert read(TEXT, max_tokens=16) == [
        "# Distilling\n\nWater boils. What boils first is poured away, what comes then is kept.",
        "The still's head is cooled.\nIt must not crack.",
        "## Bottling\n\nBottles are boiled, dried, and filled to the neck.",
    ]
    assert read(TEXT, max_tokens=1000) == ["\n\n".join(split_paragraphs(TEXT.splitlines()))]


def test_passages_overlap_by_whole_paragraphs(read):
    text = "\n\n".join(f"{letter} one two" for letter in "abcdef")
    assert read(text, max_tokens=9, overlap_tokens=3) == [
        "a one two\n\nb one two\n\nc one two",
        "c one two\n\nd one two\n\ne one two",
        "e one two\n\nf one two",
    ]
    assert len(read(text, max_tokens=9, overlap_tokens=2)) == 2, "half a paragraph is no overlap"


def test_a_long_paragraph_is_cut_where_a_sentence_ends_and_else_between_words(read):
    sentences = "One two three four. Five six seven eight. Nine ten."
    assert read(sentences, max_tokens=8) == [
        "One two three four.",
        "Five six seven eight. Nine ten.",
    ]
    assert read("one two three", max_tokens=2) == ["one", "two three"]
    assert list(halve_to_fit("一二三四五六七八", len, 4)) == ["一二三四", "五六七八"]
    assert list(halve_to_fit("「二三。」五六七。", len, 5)) == ["「二三。」", "五六七。"]


TOKENIZERS = {"byte pairs": byte_pair_tokenizer, "word pieces": word_piece_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def count(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = TOKENIZERS[request.param]()
    tokenizer.save_pretrained(folder)
    counter = token_counter(str(folder))
    ids = tokenizer("some text, of a document", add_special_tokens=False)["input_ids"]
    assert counter("some text, of a document") == len(ids)
    return counter


@settings(max_examples=25, deadline=None)
@given(
    text=st.lists(
        st.text("abc dé一。. #\n\u2028", max_size=120) | st.text(max_size=30),
        min_size=1,
        max_size=12,
    ).map("\n\n".join),
    most=st.integers(16, 40),
    share=st.sampled_from([0, 0.25, 0.5]),
)
def test_no_passage_is_too_long_and_no_character_is_lost(
    count, tmp_path_factory, text, most, share
):
    file = tmp_path_factory.mktemp("document") / "a.md"
    file.write_bytes(text.encode(errors="replace"))
    letters = "".join(file.read_bytes().decode().replace("\ufeff", "").split())
    read = read_document(
        str(file), count_tokens=count, max_tokens=most, overlap_tokens=int(share * most)
    )
    if not letters:
        with pytest.raises(UserError, match="is empty"):
            list(read)
        return
    passages = list(read)
    assert max(map(count, passages)) <= most
    assert all(passage.strip() for passage in passages)
    # Possible ends of the passages so far: each starts within the one before or right after it.
    ends = {0}
    for passage in passages:
        passage_letters = "".join(passage.split())
        starts = {end - k for end in ends for k in range(len(passage_letters) if share else 1)}
        ends = {
            start + len(passage_letters)
            for start in starts
            if start >= 0 and letters.startswith(passage_letters, start)
        }
    assert len(letters) in ends


@pytest.mark.parametrize(
    ("text", "max_characters", "parts"),
    [
        ("नदी साफ है। पानी ठंडा है।", 15, ["नदी साफ है।", "पानी ठंडा है।"]),
        ("هل الماء بارد؟ نعم هو بارد", 15, ["هل الماء بارد؟", "نعم هو بارد"]),
        ("ที่นี่ดีกว่า", 8, ["ที่นี่", "ดีกว่า"]),
        ("e\u0301" * 5, 6, ["e\u0301" * 2, "e\u0301" * 3]),
    ],
)
def test_texts_of_any_script_are_cut_between_sentences_and_never_within_a_character(
    text, max_characters, parts
):
    assert list(halve_to_fit(text, len, max_characters)) == parts
