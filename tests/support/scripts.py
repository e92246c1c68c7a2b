"""Texts in many scripts: generated for search, and drawn by hypothesis."""

import json
import unicodedata
from pathlib import Path
from random import Random

from hypothesis import strategies as st

# Letters that words of each language are made of, and what stands between words.
ALPHABETS = {
    "zh": ("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜", ""),
    "ja": ("あいうえおかきくけこさしすせそタチツテトナニヌネノ水火木金土山川田人口車門雨電話", ""),
    "ko": (
        "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허고노도로모보소오조초코토포호",
        " ",
    ),
    "th": ("กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศสหอะาเแโไ", ""),
    "de": ("abcdefghijklmnoprstuvwzäöüß", " "),
    "ar": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", " "),
    "ru": ("абвгдежзийклмнопрстуфхцчшщыьэюя", " "),
    "hi": ("कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह", " "),
}

VOWEL_SIGNS = {"hi": "ािीुूेैोौ", "th": "\u0e31\u0e34\u0e35\u0e38\u0e48\u0e49"}


def exact_match_pairs(language: str, count: int = 400) -> list[tuple[str, str]]:
    """(query, passage) pairs, in which each query stands word for word in its passage alone."""
    random = Random(language)
    letters, space = ALPHABETS[language]
    signs = VOWEL_SIGNS.get(language, "")

    def word() -> str:
        drawn = (
            random.choice(letters)
            + (random.choice(signs) if signs and random.random() < 0.4 else "")
            for _ in range(random.randrange(2, 8))
        )
        return "".join(drawn)

    pairs = []
    for _ in range(count):
        words = [word() for _ in range(40)]
        start = random.randrange(30)
        pairs.append((space.join(words[start : start + 6]), space.join(words)))
    return pairs


# Letters with marks, joiners, marks of direction, emoji sequences, lone surrogates, compatibility
# forms, and any other character.
PIECES = (
    "a", "Z", "ß", "é", "e\u0301\u0327", "İ", "ǆ", "ﬁ", "Å", "한글", "각", "が", "ﾊﾞ", "ー", "々",
    "水", "丽", "日本語", "ภาษาไทย", "ที่", "မြန်မာ", "ខ្មែរ", "ລາວ", "हिन्दी", "क्ष",
    "مُحَمَّد", "ﷺ", "שָׁלוֹם",
    "\u200b", "\u200d", "\u200c", "\u00ad", "\u200f", "\u202e", "\u2067", "\ufe0f", "\ufeff",
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "1️⃣", "\ud800", "\udfff", "\uffff", "\x00", "²", "½", "١٢", "™",
    " ", "\u3000", "\n", ".", "。", "،", "'", "’", "-", "_", "+", "#", "€",
)  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.characters(), st.text(max_size=3)), max_size=30
).map("".join)


def save_tokenizer_in_python(folder: Path, letters: str) -> Path:
    """BERT's tokenizer for Japanese, which has no tokenizer.json; it knows these letters."""
    folder.mkdir()
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    options = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "character",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def composed_and_decomposed(text: str) -> tuple[str, str]:
    """The text in NFC and in NFD."""
    return unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
