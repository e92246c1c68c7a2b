"""Sources of a recipe: every format, read at once and in parts."""

import json
import pickle

import pytest

from stillroom.config.corpus import Corpus
from stillroom.config.validation import validate
from stillroom.data.readers.records import Pair, SkippedRows
from stillroom.errors import UserError
from stillroom.pipeline.sources import corpus_sources
from stillroom.stages.corpus import sources
from support.tiny_models import byte_pair_tokenizer

COLLECTION = '{"_id": "1", "title": "T", "text": "one"}\n{"_id": "2", "title": "", "text": "two"}\n'
QUERIES = '{"_id": "a", "text": "what is one"}\n'
CONTENTS = {
    "pairs/1.jsonl": '{"query": "q1", "positive": "p1"}\n',
    "pairs/2.csv": "query,positive\nq2,p2\n",
    "flag.jsonl": '{"query": "q", "prompt": "i", "pos": ["p", "r"], "neg": ["n"]}\n',
    "scored.tsv": "score\tsentence1\tsentence2\n5\ta\tb\n1\tc\td\n",
    "more.txt": "a passage\nanother\n",
    "chats.jsonl": '{"prompt": "u", "completion": "v"}\n',
    "beir/corpus.jsonl": COLLECTION,
    "beir/queries.jsonl": QUERIES,
    "beir/qrels/train.tsv": "query-id\tcorpus-id\tscore\na\t1\t1\na\t2\t0\n",
    "collection.tsv": "1\tone\n2\ttwo\n",
    "queries.tsv": "a\twhat is one\n",
    "qrels.txt": "a 0 1 1\n",
    "triples.txt": "a\t1\t2\n",
    "docs/a.md": "# Title\n\nSome words.\n",
    "docs/b.txt": "Other words.\n",
    "wrong.jsonl": '{"query": "q", "positive": "p"}\n{\n{"query": "r", "positive": ""}\n',
}
JUDGED = [Pair("what is one", "one", ("two",))]
FORMATS = {
    "files": (
        {"pairs": ["pairs", "flag.jsonl"], "passages": ["*.txt"], "conversations": ["chats.jsonl"]},
        [Pair("q1", "p1"), Pair("q2", "p2"), Pair("q", "p", ("n",)), Pair("q", "r", ("n",))],
        None,
    ),
    "flag-embedding": ({"pairs": ["flag.jsonl"], "only_instruction": "other"}, [], []),
    "sentence-transformers": (
        {"pairs": ["scored.tsv"], "passages": ["more.txt"], "min_score": 3},
        [Pair("a", "b")],
        ["a passage", "another"],
    ),
    "beir": (
        {"folder": "beir"},
        [Pair("what is one", "T one", ("two",))],
        ["T one", "two"],
    ),
    "msmarco": (
        {"collection": "collection.tsv", "queries": "queries.tsv", "triples": "triples.txt"},
        JUDGED,
        ["one", "two"],
    ),
    "documents": (
        {"passages": ["docs"], "tokenizer": "tokenizer", "passage_tokens": 32},
        [],
        ["# Title\n\nSome words.", "Other words."],
    ),
    "docstrings": ({"packages": ["pluggy"]}, None, []),
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    byte_pair_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text("{}")

    def source(format, **fields):
        content = {"sources": {"own": {"format": format, **fields}}, "evaluation": {"e": "beir"}}
        return validate(Corpus, content, "recipe").sources["own"]

    return source


@pytest.mark.parametrize("format", FORMATS)
def test_a_source_of_every_format_is_the_same_whole_and_in_pickled_parts(source, format):
    fields, pairs, passages = FORMATS[format]
    section = source(format, **fields)
    for read, expected in ((sources.iter_pairs, pairs), (sources.iter_passages, passages)):
        rows = list(read(section))
        parts = pickle.loads(pickle.dumps(sources.split_source(section)))
        assert [row for part in parts for row in read(part)] == rows
        assert expected is None or rows == expected
    assert section.provides("passages")
    assert section.provides("pairs") == (format != "documents")


def test_conversations_are_read_beside_pairs(source):
    section = source("files", **FORMATS["files"][0])
    completions = [chat.completion for chat in sources.iter_conversations(section)]
    assert completions == ["v"]


def test_files_are_parts_in_the_order_of_the_recipe(source):
    parts = sources.split_source(
        source("files", pairs=["flag.jsonl", "pairs"], passages=["more.txt"])
    )
    assert [(part.kind, part.file) for part in parts] == [
        ("pairs", "flag.jsonl"),
        ("pairs", "pairs/1.jsonl"),
        ("pairs", "pairs/2.csv"),
        ("passages", "more.txt"),
    ]


def test_bad_rows_fail_unless_the_source_skips_them_and_are_then_counted(source):
    skipped = SkippedRows()
    with pytest.raises(UserError, match=r"wrong\.jsonl:2: is not JSON"):
        list(sources.iter_pairs(source("files", pairs=["wrong.jsonl"]), skipped))
    skipping = source("files", pairs=["wrong.jsonl"], on_error="skip")
    for part in sources.split_source(skipping):
        assert list(sources.iter_pairs(part, skipped)) == [Pair("q", "p")]
    assert skipped.counts == {"wrong": 2}
    assert [row["where"] for row in skipped.bad_rows] == ["wrong.jsonl:2", "wrong.jsonl:3"]


@pytest.mark.parametrize(
    ("format", "fields", "problem"),
    [
        ("msmarco", {"collection": "c", "queries": "q"}, "needs either qrels or triples"),
        ("documents", {"passages": ["docs"], "tokenizer": "t", "overlap_tokens": 200}, "half of"),
        ("documents", {"passages": ["docs"]}, "own.tokenizer: is missing"),
        ("files", {"pairs": ["a"], "on_error": "ignore"}, "own.on_error: 'ignore' is not valid"),
        ("flag-embedding", {"pair": ["a"]}, "own.pair: is not a field of a recipe. Did you mean"),
        ("parquet", {"pairs": ["a"]}, "'docstrings', 'files', 'sentence-transformers'"),
    ],
)
def test_an_invalid_source_is_refused_with_its_field(source, format, fields, problem):
    with pytest.raises(UserError) as caught:
        source(format, **fields)
    assert problem in str(caught.value)


@pytest.mark.parametrize("format", ["files", "beir", "msmarco", "documents"])
def test_a_corpus_is_made_anew_when_any_of_its_files_changes(source, tmp_path, format):
    class Recipe:
        corpus = Corpus.model_construct(
            sources={"own": source(format, **FORMATS[format][0])}, evaluation={}
        )

    before = corpus_sources(Recipe)
    noticed_files = set()
    for name in CONTENTS:
        (tmp_path / name).write_text(json.dumps({"text": "other"}))
        if corpus_sources(Recipe) != before:
            noticed_files.add(name)
            before = corpus_sources(Recipe)
    read_files = {
        "files": {"pairs/1.jsonl", "pairs/2.csv", "flag.jsonl", "chats.jsonl", "more.txt",
                  "qrels.txt", "triples.txt"},
        "beir": {"beir/corpus.jsonl", "beir/queries.jsonl", "beir/qrels/train.tsv"},
        "msmarco": {"collection.tsv", "queries.tsv", "triples.txt"},
        "documents": {"docs/a.md", "docs/b.txt"},
    }  # fmt: skip
    assert noticed_files == read_files[format]
