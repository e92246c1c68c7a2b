"""The report's figures on how tokenizers fit the texts."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import (
    ApiContract,
    Contract,
    EnsembleContract,
    LibraryContract,
    Prompts,
)
from stillroom.reports.tokenizer_fit import tokenizer_table, unknown_tokenizers
from stillroom.stages.report.tokenizers import SAMPLE_TEXTS, sample_texts, tokenizer_fits
from stillroom.storage.columns import Column
from support.scripts import TEXTS

TOKENS = ["[UNK]", "[CLS]", "[SEP]", "find", *"abcdefghij"]
VECTORS = {"max_tokens": 8, "dims": (4,), "space": "s"}


@pytest.fixture
def english(tmp_path):
    """A folder with a contract of 8 tokens and a tokenizer of words, which puts two around each."""
    return make_english(tmp_path / "english")


@pytest.fixture(scope="module")
def english_folder(tmp_path_factory):
    """The same, for tests that run many times."""
    return make_english(tmp_path_factory.mktemp("fit") / "english")


def make_english(folder):
    folder.mkdir()
    contract = Contract(
        base="x", architecture="encoder", attention="bidirectional", pooling="mean",
        prompts=Prompts(query="find "), **VECTORS,
    )  # fmt: skip
    contract.write(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder):
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


class CountedTexts(Column):
    """Ten million texts, of which only those that are read exist."""

    read = 0

    def __len__(self):
        return 10_000_000

    def value(self, row):
        self.read += 1
        return f"text {row}"


def test_of_a_large_corpus_only_a_sample_is_read():
    corpus = SimpleNamespace(queries=CountedTexts(), passages=CountedTexts())
    sample = sample_texts(corpus, {})["corpus"]
    assert corpus.queries.read == corpus.passages.read == SAMPLE_TEXTS
    assert sample[-1] == ("passage", "text 9999999")


def samples(*texts, role="passage"):
    return {"shop": [(role, text) for text in texts]}


def test_a_mixed_collection_has_figures_for_all_texts_and_for_each_script(english):
    scripts = tokenizer_fits({"m": english}, samples("a b c", "a b", "вода вода"))["m"]["fit"]
    assert list(scripts["shop"]) == ["all", "Latin", "Cyrillic"]
    figures = scripts["shop"]
    assert [figures[name]["unknown"] for name in figures] == [8 / 13, 0, 1]
    assert figures["Latin"]["tokens_per_word"] == 1
    assert figures["Cyrillic"]["tokens_per_character"] == 2 / 9
    assert list(tokenizer_fits({"m": english}, samples("a"))["m"]["fit"]["shop"]) == ["Latin"]


@settings(deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_texts_in_any_script_have_figures(english_folder, texts):
    scripts = tokenizer_fits({"m": english_folder}, samples(*texts))["m"]["fit"]["shop"]
    for figures in scripts.values():
        assert 0 <= figures["unknown"] <= 1 and 0 <= figures["cut"] <= 1
    by_script = [figures["texts"] for name, figures in scripts.items() if name != "all"]
    assert sum(by_script) == len(texts)


def test_a_text_is_cut_where_prompt_and_special_tokens_leave_too_little_room(english):
    def cut(role, *texts):
        fits = tokenizer_fits({"m": english}, samples(*texts, role=role))
        return fits["m"]["fit"]["shop"]["Latin"]["cut"]

    assert cut("passage", "a b c d e f", "a b c d e f g") == 0.5  # 8 tokens, 2 around a text
    assert cut("query", "a b c d e", "a b c d e f") == 0.5  # and one of the prompt


def test_members_of_an_ensemble_and_a_library_s_models_are_judged_and_an_api_s_are_not(
    english, tmp_path
):
    several = tmp_path / "several"
    several.mkdir()
    (several / "0").symlink_to(english, target_is_directory=True)
    EnsembleContract(combine="average", members=("0",), **VECTORS).write(several)
    library = tmp_path / "library"
    library.mkdir()
    (library / "base").mkdir()
    save_tokenizer(library / "base")
    (library / "base" / "config.json").write_text("{}")
    LibraryContract(library="sentence-transformers", base=str(library / "base"), **VECTORS).write(
        library
    )
    api = tmp_path / "api"
    api.mkdir()
    ApiContract(base_url="http://localhost:1", model="m", **VECTORS).write(api)
    fits = tokenizer_fits({"both": several, "library": library, "api": api}, samples("a b"))
    assert list(fits) == ["both, 0", "library", "api"]
    assert fits["both, 0"]["fit"] == fits["library"]["fit"]
    assert list(unknown_tokenizers(fits)) == [
        "Whether api's tokenizer fits is not known: the model is behind an API"
    ]
    json.dumps(fits)
    header, *rows = tokenizer_table(fits)
    assert [row[:3] for row in rows] == [
        ["both, 0", "shop", "Latin"], ["library", "shop", "Latin"],
    ]  # fmt: skip
    assert rows[0][header.index("tokens a word")] == "1.00"


def test_queries_and_passages_of_the_corpus_and_of_each_set_are_sampled():
    class Corpus:
        queries, passages = ["q"], ["p"] * 1000

    judged = EvaluationSet({"1": "an answer"}, {"a": "asked", "b": "not judged"}, {"a": {"1": 1}})
    sampled = sample_texts(Corpus, {"shop": judged})
    assert sampled["corpus"].count(("passage", "p")) == 400
    assert sampled["shop"] == [("query", "asked"), ("passage", "an answer")]
