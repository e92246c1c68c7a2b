"""Descriptions of data files, compared with the files."""

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
    description = describe(write(tmp_path / "a.jsonl", [*rows, {"query": 3, "pos": []}]))
    assert description["rows"] == {"pairs": 10}
    assert description["files"][0]["layout"] == "flag-embedding"
    assert description["negatives_per_pair"] == 2
    assert description["instructions"] == {"Find": 10}
    assert description["left_out"]["counts"] == {"wrong": 1}
    assert description["left_out"]["wrong"][0]["where"] == f"{tmp_path}/a.jsonl:11"
    positive = description["fields"]["positive"]
    assert (positive["texts"], positive["distinct"], positive["repeated"]) == (10, 1, 9)
    assert (description["unit"], positive["lengths"]["p50"], positive["lengths"]["longest"]) == (
        "words", 3, 3,
    )  # fmt: skip
    assert sum(count for *_, count in positive["histogram"]) == 10
    assert len(description["examples"]) == EXAMPLES


def test_scores_are_described_with_their_range_and_whether_min_score_must_be_set(tmp_path):
    rows = [{"query": f"q{i}", "passage": "p", "label": i} for i in range(3)]
    rows += [{"query": "q", "passage": "p", "label": 5, "negative": "n"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flag = {"query": "q", "pos": ["p"], "neg": [], "pos_scores": [0.5]}
    (tmp_path / "b.jsonl").write_text(json.dumps(flag) + "\n")
    assert describe(str(tmp_path))["scores"] == {
        "label": {"pairs": 4, "lowest": 0, "highest": 5, "min_score_required": True},
        "pos_scores": {"pairs": 1, "lowest": 0.5, "highest": 0.5, "min_score_required": False},
    }


def test_a_folder_in_beir_layout_is_passages_queries_and_judgements(tmp_path):
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "corpus.jsonl", [{"_id": "1", "title": "T", "text": "one"}])
    write(tmp_path / "queries.jsonl", [{"_id": "a", "text": "what"}])
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\n")
    (tmp_path / "notes.md").write_text("# Title\n\nText.\n")
    write(tmp_path / "chats.jsonl", [{"text": ["Hi", "Hello"]}])
    (tmp_path / "prompts.json").write_text('{"query": "Find: "}')
    description = describe(str(tmp_path))
    assert [row["where"] for row in description["left_out"]["wrong"]] == [
        f"{tmp_path}/prompts.json:1"
    ]
    with pytest.raises(UserError, match=r"prompts\.json:1: is not a pair in a known layout"):
        describe(str(tmp_path / "prompts.json"))
    assert description["rows"] == {
        "conversations": 1, "passages": 1, "paragraphs": 2, "judgements": 1, "queries": 1,
    }  # fmt: skip
    assert set(description["fields"]) == {"prompt", "completion", "passage", "paragraph", "query"}


def test_large_data_is_described_from_samples_close_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_statistics, "SAMPLE", 400)
    monkeypatch.setattr(DistinctCounter.__init__, "__defaults__", (500,))
    rng = random.Random(3)
    rows = [{"text": " ".join(rng.choices(WORDS, k=1 + i % 100))} for i in range(4000)]
    passages = describe(write(tmp_path / "a.jsonl", rows + rows[:1000]))["fields"]["passage"]
    distinct = len({row["text"] for row in rows})
    assert not passages["exact"]
    assert passages["distinct"] == pytest.approx(distinct, rel=0.15)
    assert passages["lengths"]["mean"] == pytest.approx(50, rel=0.15)
    assert passages["lengths"]["p95"] == pytest.approx(95, abs=6)


@pytest.mark.parametrize("count", [100, 1000, 50_000])
def test_distinct_texts_are_counted_exactly_then_estimated_in_bounded_memory(count):
    counter = DistinctCounter(limit=1000)
    for i in [*range(count), *range(0, count, 2)]:
        counter.add(f"text {i}")
        assert len(counter.hashes) <= 1000
    assert counter.exact == (count <= 1000)
    assert len(counter) == (count if counter.exact else pytest.approx(count, rel=0.15))


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


def test_texts_without_spaces_are_as_long_as_their_characters_and_told_apart_by_script(tmp_path):
    chinese, english = "河里的水一年四季都很清澈冰凉。", "The water in the river is clear and cold"
    rows = [{"text": chinese * 4}] * 6 + [{"text": english}] * 2
    description = describe(write(tmp_path / "a.jsonl", rows))
    passages = description["fields"]["passage"]
    assert (passages["lengths"]["p50"], passages["language"]) == (4 * 14, "zh")
    assert passages["by_script"] == {
        "Cjk": {"words": 56, "characters": 60},
        "Latin": {"words": 9, "characters": len(english)},
    }
    tables = dict(description_tables(description))
    chinese_row = ["passage", "Chinese", "Cjk", "75%", "56.0", "60.0"]
    assert tables["languages, scripts and mean lengths"][1] == chinese_row


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
    description = json.loads(done.stdout)
    assert description["unit"] == f"tokens of {decoder}"
    assert description["fields"]["positive"]["lengths"]["longest"] > 30
    assert description["fields"]["positive"]["unknown"] == 0
    assert [title for title, _ in description_tables(description)][:2] == [
        "files",
        f"texts, lengths in {description['unit']}",
    ]
    assert render_description(description).count("<rect") == sum(
        len(texts["histogram"]) for texts in description["fields"].values()
    )
