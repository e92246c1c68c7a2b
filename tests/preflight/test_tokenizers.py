"""Texts that a model's tokenizer does not know are found before a run."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from stillroom.config.load import read_recipe
from stillroom.encoders.files.inputs import model_tokenizer
from stillroom.encoders.tokens.count import token_counter
from stillroom.encoders.tokens.fit import measure_fit, text_room
from stillroom.errors import UserError
from stillroom.preflight.tokenizers import check_tokenizers
from stillroom.storage.artifacts import Store
from support.scripts import exact_match_pairs, save_tokenizer_in_python

PARTS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]


@pytest.fixture
def english(tmp_path):
    """A folder with a tokenizer that knows the letters a to z."""
    return save(
        tmp_path / "english", models.WordPiece(numbered("[UNK]", *PARTS), unk_token="[UNK]")
    )


def numbered(*tokens):
    return {token: number for number, token in enumerate(tokens)}


def save(folder, model):
    folder.mkdir()
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    # It pads with its first token.
    write(folder / "tokenizer_config.json", pad_token=tokenizer.id_to_token(0))
    return folder


def write(file, **content):
    file.write_text(json.dumps(content))


def fit_of(folder, texts):
    return measure_fit(model_tokenizer(str(folder)), texts)


def test_unknown_letters_are_those_in_unknown_tokens_or_in_none(english, tmp_path):
    fit = fit_of(english, ["abc def", "вода 水", "!?", "ab\ud800"])
    assert (fit.letters, fit.unknown) == (6 + 5 + 2, 5)
    assert fit.tokens.tolist() == [6, 2, 2, 3]
    # Without an unknown token, letters that are in no token vanish.
    silent = save(tmp_path / "silent", models.BPE(numbered(*"abc"), [], unk_token=None))
    assert fit_of(silent, ["abcd"]).unknown_share == 0.25
    assert fit_of(silent, [""]).unknown_share == 0


@pytest.fixture
def written_in_python(tmp_path):
    """A folder with BERT's tokenizer for Japanese, of which there is no tokenizer.json."""
    return save_tokenizer_in_python(tmp_path / "japanese", "水が沸くガabc")


def test_a_tokenizer_written_in_python_is_measured_too(written_in_python):
    fit = fit_of(written_in_python, ["水が沸く。", "水漢字x", "ｶﾞabc", "\ud800", ""])
    assert fit.tokens.tolist() == [5, 4, 4, 1, 0]
    assert (fit.letters, fit.unknown) == (4 + 4 + 4, 3)
    assert token_counter(str(written_in_python))("水が沸く。") == 5
    assert text_room(model_tokenizer(str(written_in_python)), "水", 16) == 13


@pytest.mark.parametrize("by", ["sentence-transformers", "transformers"])
def test_texts_are_judged_as_the_encoder_reads_them_where_it_lower_cases_them(
    english, tmp_path, by
):
    assert fit_of(english, ["ABC"]).unknown == 3
    folder = shutil.copytree(english, tmp_path / "lower")
    if by == "sentence-transformers":
        write(folder / "sentence_bert_config.json", do_lower_case=True)
    else:  # which makes BERT's tokenizer anew
        write(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)
    assert fit_of(folder, ["ABC"]).unknown == 0
    assert token_counter(str(folder))("ABC") == 3


def test_the_tokenizer_of_static_embeddings_is_measured(english, tmp_path):
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((english / "tokenizer.json").read_bytes())
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    module = {"idx": 0, "name": "0", "path": "", "type": kind}
    (folder / "modules.json").write_text(json.dumps([module]))
    assert fit_of(folder, ["abc в"]).unknown == 1


def recipe(folder, base, rows, *overrides):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = [f"corpus.sources.help.pairs=[{file}]", f"student.base={base}", f"root={folder}"]
    return read_recipe("jobs/recipes/help-desk.yaml", [*fields, *overrides])


def pairs(texts):
    return [{"query": query, "positive": passage} for query, passage in texts]


def check(read, stages=("student",)):
    return list(check_tokenizers(read, Store(read.root), stages))


def test_texts_that_a_tokenizer_does_not_know_are_refused_unless_the_recipe_allows_them(
    english, tmp_path
):
    thai = pairs(exact_match_pairs("th", 20))
    with pytest.raises(
        UserError, match=r"student.base: .*does not know 100% .* corpus.sources.help \(Thai\)"
    ):
        check(recipe(tmp_path, english, thai))
    [finding] = check(recipe(tmp_path, english, thai, "max_unknown=1.0"))
    assert not finding.ok and "100.0% unknown" in finding.detail


def test_a_few_unknown_letters_are_a_warning_and_none_are_fine(english, tmp_path):
    rows = pairs([(f"what is {word}", f"{word} is a kind of thing") for word in ("x", "y", "z")])
    [finding] = check(recipe(tmp_path, english, rows))
    assert finding.ok and "(Latin) 0.0% unknown" in finding.detail
    assert "tokens a word" in finding.detail
    rows[0]["query"] += " é é"
    [finding] = check(recipe(tmp_path, english, rows))
    assert not finding.ok and "multilingual" in finding.fix
    assert check(recipe(tmp_path, english, rows), stages=("report",)) == []


def test_the_tokenizer_of_a_teacher_behind_an_api_is_said_to_be_unknown(english, tmp_path):
    api = {"base_url": "http://localhost:1/v1", "model": "m", "dims": 8}
    rows = pairs([("what is x", "x is a letter")])
    overrides = [f"teacher={{api: {json.dumps(api)}}}"]
    read = recipe(tmp_path, english, rows, *overrides)
    student, teacher = check(read, stages=("teacher", "student"))
    assert student.what.startswith("student.base") and "cannot be seen from here" in teacher.detail
