"""Pages and cards with texts in any script: none turns or breaks what stands beside it."""

import json
from html.parser import HTMLParser

import pytest
from test_render import extras, report, small_vectors

from stillroom.encoders.contract import Contract, Prompts
from stillroom.reports.contamination import render_contamination
from stillroom.reports.describe import describe, render_description
from stillroom.reports.markdown import markdown_code, markdown_row
from stillroom.reports.model_card import Origin, write_model_card
from stillroom.reports.page import TEMPLATES
from stillroom.reports.render import render_evaluation, render_report
from stillroom.storage.artifacts import Store

ARABIC = "مجموعة"
# Elements that begin a paragraph, and whose direction the style sheet takes from their text.
PARAGRAPHS = {"th", "td", "li", "figcaption", "text"}


class Unisolated(HTMLParser):
    """Arabic texts on a page that may turn their neighbours, and `lang` of those in quotations."""

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.found, self.quoted_languages = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if ARABIC not in data:
            return
        tag, attributes = self.open[-1]
        alone = data.strip() == ARABIC
        isolated = tag == "bdi" or attributes.get("dir") == "auto" or (tag in PARAGRAPHS and alone)
        if not isolated and tag != "title":
            self.found.append((tag, data))
        if tag == "blockquote":
            self.quoted_languages.add(attributes.get("lang"))


def arabic_report():
    content = report()
    content["sets"] = {ARABIC: content["sets"]["held-out"]}
    content["models"] = {
        name if name in ("teacher", "student") else ARABIC: {
            **model, "scores": {ARABIC: model["scores"]["held-out"]}
        }
        for name, model in content["models"].items()
    }  # fmt: skip
    content["models"][ARABIC]["vectors"] = small_vectors(ARABIC)
    content["retention"] = {ARABIC: 0.75, "mean": 0.75}
    fields = {"texts": 4, "unknown": 0.5, "tokens_per_word": 9, "tokens_per_character": 2, "cut": 1}
    content["tokenizers"] = {"student": {"fit": {ARABIC: {"Arabic": fields}}}}
    return content


def arabic_pages(folder):
    given = extras() | {"name": ARABIC}
    given["negatives"]["examples"] = [{"query": ARABIC, "positive": ARABIC, "negatives": [ARABIC]}]
    yield "report", render_report(arabic_report(), given)
    yield "evaluation", render_evaluation(arabic_report(), ARABIC)
    pairs = folder / f"{ARABIC}.jsonl"
    row = {"query": ARABIC, "positive": ARABIC, "instruction": ARABIC}
    pairs.write_text(json.dumps(row) + "\n")
    yield "description", render_description(describe(str(pairs)) | {"location": ARABIC})
    hit = {
        "kind": "copy", "score": 1.0, "source": ARABIC, "pair": 3, "set": ARABIC, "id": ARABIC,
        "role": "query", "what": "query", "text": ARABIC, "evaluation_text": ARABIC,
    }  # fmt: skip
    counts = [{"source": ARABIC, "set": ARABIC, "kind": "copy", "pairs": 1}]
    result = {
        "found": 1, "checked": {ARABIC: 2}, "counts": counts, "hits": [hit], "action": "drop",
        "totals": {ARABIC: 1},
    }  # fmt: skip
    yield "contamination", render_contamination(result, ARABIC)


def test_an_arabic_text_is_isolated_wherever_a_page_shows_it(tmp_path):
    for name, page in arabic_pages(tmp_path):
        assert page.count(ARABIC) > 3, name
        assert Unisolated(page).found == [], name
    assert "unicode-bidi: plaintext" in TEMPLATES.get_template("style.css").render()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("これは日本語で書かれた文章です。どうぞよろしくお願いいたします。", "ja"),
        ("这是一段用中文写的文字，欢迎您来阅读它。", "zh"),
        ("12345", None),
    ],
)
def test_an_example_says_its_language_so_that_han_characters_have_its_forms(
    text, language, tmp_path
):
    pairs = tmp_path / "pairs.jsonl"
    row = {"query": text, "positive": f"{text} {text}"}
    pairs.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    page = render_description(describe(str(pairs)))
    assert page.count(f'lang="{language}"') == (2 if language else 0)


def test_an_example_is_cut_between_characters(tmp_path):
    family = "👩‍👩‍👧‍👦"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"query": "a" + family * 100, "positive": "b"}) + "\n")
    [example] = describe(str(pairs))["examples"]
    assert example["query"] == "a" + family * 71


def test_an_arabic_text_turns_no_other_in_a_model_card(tmp_path):
    prompt = f"{ARABIC}:  \u202e`|"
    Contract(
        base=ARABIC, architecture="encoder", attention="bidirectional", pooling="mean", dims=(4,),
        max_tokens=32, space=ARABIC, prompts=Prompts(query=prompt),
    ).write(tmp_path)  # fmt: skip
    origin = Origin(ARABIC, "123", ARABIC, measured=f"{ARABIC} and 2 others")
    store, report = Store(str(tmp_path / "runs")), arabic_report() | {"hardware": "2 CPUs"}
    write_model_card(tmp_path, "name", None, store, report=report, origin=origin)
    _, _, card = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    isolated = card.count(f"\u2068{ARABIC}\u2069") + card.count(f"\u2068`{ARABIC}`\u2069")
    assert card.count(ARABIC) == isolated + 1  # and the prompt
    assert f'| query prompt | \u2068`` "{ARABIC}:  \ufffd`\\|" ``\u2069 |' in card
    assert "\u202e" not in card


def test_a_text_in_markdown_ends_neither_its_row_nor_its_code():
    assert markdown_row(["a|b\nc", f"{ARABIC} 1", "2"]) == (
        f"| a\\|b c | \u2068{ARABIC} 1\u2069 | 2 |"
    )
    assert markdown_code("a  `b`") == "`` a  `b` ``"
    assert markdown_code("plain") == "`plain`"
