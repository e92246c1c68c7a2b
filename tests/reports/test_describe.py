"""What is said of data is so."""

import json
import random

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.errors import UserError
from stillroom.reports import text_statistics
from stillroom.reports.describe import (
    EXAMPLES,
    describe,
    description_tables,
    render_description,
)
from stillroom.reports.text_statistics import DistinctCounter, script_of

WORDS = [f"w{i}" for i in range(50)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_counts_lengths_and_repeated_texts_are_those_of_the_file(tmp_path):
    rows = [{"query": f"q {i}", "pos": ["same text here"], "neg": ["a", "b"], "prompt": "Find"}
            for i in range(10)]  # fmt: skip
    found = describe(write(tmp_path / "a.jsonl", [*rows, {"query": 3, "pos": []}]))
    assert found["rows"] == {"pairs": 10}
    assert found["files"][0]["layout"] == "flag-embedding"
    assert found["negatives_per_pair"] == 2
    assert found["instructions"] == {"Find": 10}
    assert found["left_out"]["counts"] == {"wrong": 1}
    assert found["left_out"]["wrong"][0]["where"] == f"{tmp_path}/a.jsonl:11"
    positive = found["fields"]["positive"]
    assert (positive["texts"], positive["distinct"], positive["repeated"]) == (10, 1, 9)
    assert (found["unit"], positive["lengths"]["p50"], positive["lengths"]["longest"]) == (
        "words", 3, 3,
    )  # fmt: skip
    assert sum(count for *_, count in positive["histogram"]) == 10
    assert len(found["examples"]) == EXAMPLES


def test_a_folder_in_beir_layout_is_passages_queries_and_judgements(tmp_path):
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "corpus.jsonl", [{"_id": "1", "title": "T", "text": "one"}])
    write(tmp_path / "queries.jsonl", [{"_id": "a", "text": "what"}])
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\n")
    (tmp_path / "notes.md").write_text("# Title\n\nText.\n")
    write(tmp_path / "chats.jsonl", [{"text": ["Hi", "Hello"]}])
    (tmp_path / "prompts.json").write_text('{"query": "Find: "}')
    found = describe(str(tmp_path))
    assert [one["where"] for one in found["left_out"]["wrong"]] == [f"{tmp_path}/prompts.json:1"]
    with pytest.raises(UserError, match=r"prompts\.json:1: is not a pair in a known layout"):
        describe(str(tmp_path / "prompts.json"))
    assert found["rows"] == {
        "conversations": 1, "passages": 1, "paragraphs": 2, "judgements": 1, "queries": 1,
    }  # fmt: skip
    assert set(found["fields"]) == {"prompt", "completion", "passage", "paragraph", "query"}


def test_large_data_is_described_from_samples_close_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_statistics, "SAMPLE", 400)
    monkeypatch.setattr(DistinctCounter.__init__, "__defaults__", (500,))
    chance = random.Random(3)
    rows = [{"text": " ".join(chance.choices(WORDS, k=1 + i % 100))} for i in range(4000)]
    found = describe(write(tmp_path / "a.jsonl", rows + rows[:1000]))["fields"]["passage"]
    real = len({row["text"] for row in rows})
    assert not found["exact"]
    assert found["distinct"] == pytest.approx(real, rel=0.15)
    assert found["lengths"]["mean"] == pytest.approx(50, rel=0.15)
    assert found["lengths"]["p95"] == pytest.approx(95, abs=6)


@pytest.mark.parametrize("many", [100, 1000, 50_000])
def test_distinct_texts_are_counted_exactly_then_estimated_in_bounded_memory(many):
    distinct = DistinctCounter(limit=1000)
    for i in [*range(many), *range(0, many, 2)]:
        distinct.add(f"text {i}")
        assert len(distinct.hashes) <= 1000
    assert distinct.exact == (many <= 1000)
    assert len(distinct) == (many if distinct.exact else pytest.approx(many, rel=0.15))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Wasser kocht", "Latin"),
        ("вода кипит", "Cyrillic"),
        ("水が沸く、ゆっくりと", "Hiragana"),
        ("水开了", "Cjk"),
        ("الماء يغلي", "Arabic"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "Latin"),
        ("100 °, 3 + 4", "no letters"),
    ],
)
def test_scripts_go_by_the_names_of_letters(text, script):
    assert script_of(text) == script


def test_the_command_prints_tables_one_json_document_or_writes_a_page(tmp_path, decoder):
    rows = [{"query": f"q {i}", "positive": "<script>[bold]p" * (i + 1)} for i in range(30)]
    file = write(tmp_path / "a.jsonl", [*rows, *([{"query": "q"}] * 30)])
    run = CliRunner().invoke
    shown = run(app, ["data", "describe", file, "--html", str(tmp_path / "a.html")])
    assert shown.exit_code == 0, shown.output
    assert "llm2vec" in shown.stdout and "… and 10 more" in shown.stdout
    assert "<script>[bold]p" in shown.stdout
    html = (tmp_path / "a.html").read_text()
    assert "<script>" not in html and html.count("<svg") == 2
    done = run(app, ["data", "describe", file, "--json", "--model", str(decoder)])
    found = json.loads(done.stdout)
    assert found["unit"] == f"tokens of {decoder}"
    assert found["fields"]["positive"]["lengths"]["longest"] > 30
    assert [title for title, _ in description_tables(found)][:2] == [
        "files",
        f"texts, lengths in {found['unit']}",
    ]
    assert render_description(found).count("<rect") == sum(
        len(texts["histogram"]) for texts in found["fields"].values()
    )
