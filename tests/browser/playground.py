"""The playground's page in a real browser, on a release with markup in a passage."""

import json
import re
import shutil
import socket

import httpx
import numpy as np
import pytest
import ray
from playwright.sync_api import expect, sync_playwright
from ray import serve

from stillroom.encoders.files.load import load_encoder
from stillroom.release.playground_corpus import (
    EncoderView,
    ExampleQuery,
    PcaPlane,
    PlaygroundCorpus,
)
from stillroom.serving.app import build
from stillroom.serving.http.api_keys import KEYS_VARIABLE
from support.tiny_releases import make_release

KEY = {"Authorization": "Bearer secret"}
MARKUP = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
JAPANESE = "水曜日の会議は、三時に始まります。"
ARABIC = "يبدأ الاجتماع يوم الأربعاء في الساعة 3 (pm)."
FAMILY = "👩‍👩‍👧‍👦"  # seven characters that are one to a reader
SCRIPTS = [JAPANESE, ARABIC, FAMILY * 40]
NUMBERS = [f"Number {n} says {'very ' * (n % 5)}much about {n * n}." for n in range(36)]
PASSAGES = [*NUMBERS, *SCRIPTS, MARKUP]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground") / "tiny"
    make_release(folder, shared_space=True)
    views = {}
    for name in ("teacher", "student"):
        vectors = load_encoder(folder / name).encode(PASSAGES, "passage").astype(np.float16)
        views[name] = EncoderView(vectors, PcaPlane.fit(vectors))
    examples = [ExampleQuery("which number says much?", [3]), ExampleQuery(MARKUP, [39])]
    clusters = (np.arange(len(PASSAGES)) % 3).astype(np.uint8)
    PlaygroundCorpus(PASSAGES, 90, examples, clusters, views).write(
        folder / "playground" / "numbers"
    )
    content = json.loads((folder / "release.json").read_text())
    (folder / "release.json").write_text(json.dumps({**content, "playground": ["numbers"]}))
    return folder


@pytest.fixture(scope="module")
def url(release):
    """The URL of the release behind a key; /off serves only its student, without a page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init("local", num_cpus=4, include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS_VARIABLE, "ann:secret")
        locked = build({"releases": [str(release)]})
    off = {"releases": [str(release)], "teacher": {"replicas": 0}, "playground": False}
    serve.run_many(  # both start at once
        [serve.RunTarget(locked, "locked", "/"), serve.RunTarget(build(off), "off", "/off")]
    )
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path, f"no browser: none of {', '.join(names)} is installed (apt-get install chromium)"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page with its key; fails if a page logged an error or called another host."""
    errors, other_hosts, contexts = [], [], []

    def open_page(*, unlocked=True, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", lambda r: r.url.startswith(url) or other_hosts.append(r.url))
        context.on("weberror", lambda e: errors.append(str(e.error)))
        # A missing key is answered with 401, which Chromium logs as a failed resource.
        context.on(
            "console",
            lambda m: "401" in m.text or m.type not in ("error", "warning")
            or errors.append(m.text),
        )  # fmt: skip
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        if unlocked:
            unlock(page)
            expect(page.locator("#status")).to_contain_text("40 of 90 passages")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert (errors, other_hosts) == ([], [])


def unlock(page):
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use it").click()


def search(page, query):
    page.get_by_label("Query").first.fill(query)
    page.get_by_label("Query").first.press("Enter")
    expect(page.locator("#status")).to_contain_text("shared")


def test_both_lists_show_the_hits_of_brute_force_search(visit, release):
    page = visit()
    query = "what says number nine?"
    search(page, query)
    rows = {}
    for name in ("teacher", "student"):
        vector = load_encoder(release / name).encode([query], "query")[0]
        stored = PlaygroundCorpus.read(release / "playground" / "numbers").encoders[name].vectors
        scores = stored.astype(np.float32) @ vector
        best = np.argsort(-scores, kind="stable")[:10]
        hits = page.locator(f".{name} button.hit")
        expect(hits).to_have_count(10)
        shown = [float(text) for text in page.locator(f".{name} .score").all_inner_texts()]
        np.testing.assert_allclose(shown, scores[best], atol=2e-3)
        rows[name] = [int(hit.get_attribute("data-row")) for hit in hits.all()]
        np.testing.assert_allclose(scores[rows[name]], scores[best], atol=1e-5)
        expect(page.locator(f".{name} .times")).to_contain_text("ms")
        expect(page.locator(f".{name} .map .marks circle")).to_have_count(11)
        inside = page.locator(f".{name} .marks .query").evaluate(
            "q => q.cx.baseVal.value >= 0 && q.cx.baseVal.value <= 560 && q.cy.baseVal.value <= 320"
        )
        assert inside
    shared = set(rows["teacher"]) & set(rows["student"])
    assert f"{len(shared)} of 10" in page.locator("#status").inner_text()
    marked = page.locator("button.hit.shared")
    assert {int(hit.get_attribute("data-row")) for hit in marked.all()} == shared
    expect(page.locator(".links path")).to_have_count(len(shared))


def test_markup_in_a_passage_and_in_a_query_stays_text(visit):
    page = visit()
    page.locator("#examples button").nth(1).click()
    expect(page.locator(".student .text", has_text=MARKUP)).to_have_count(1)
    expect(page.locator(".student li", has_text="judged an answer")).to_contain_text(MARKUP)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Stillroom"


@pytest.mark.parametrize("text", SCRIPTS, ids=["Japanese", "Arabic", "emoji"])
def test_texts_in_any_script_are_typed_searched_and_shown_from_their_own_side(visit, text):
    page = visit(viewport={"width": 900, "height": 900})
    search(page, text)
    assert page.get_by_label("Query").first.input_value() == text
    direction = "rtl" if text == ARABIC else "ltr"
    computed = "e => getComputedStyle(e).direction"
    assert page.get_by_label("Query").first.evaluate(computed) == direction
    for name in ("teacher", "student"):
        # The query is a passage, whose vector is nearest to it, save for the prompts.
        hit = page.locator(f".{name} button.hit", has_text=text)
        expect(hit).to_have_count(1)
        assert hit.locator(".text").inner_text().strip() == text
        assert hit.locator(".text").evaluate(computed) == direction
        # Rank, text and score stay in their places, whatever the direction of the text.
        left_edges = [
            hit.locator(part).bounding_box()["x"] for part in (".rank", ".text", ".score")
        ]
        assert left_edges == sorted(left_edges)
        hit.hover()
        caption = page.locator(f".{name} .map figcaption")
        expect(caption).to_have_attribute("dir", "auto")
        label = caption.inner_text()
        assert text.startswith(label) and (text != FAMILY * 40 or len(label) % len(FAMILY) == 0)


def test_the_keyboard_alone_searches_reads_and_returns(visit):
    page = visit()
    expect(page.get_by_label("Query").first).to_be_focused()
    search(page, "number")

    def hit(name, index):
        return page.locator(f".{name} button.hit").nth(index)

    for key, name, index in [
        ("ArrowDown", "teacher", 0), ("ArrowDown", "teacher", 1), ("ArrowRight", "student", 1),
        ("End", "student", 9), ("ArrowLeft", "teacher", 9), ("Home", "teacher", 0),
    ]:  # fmt: skip
        page.keyboard.press(key)
        expect(hit(name, index)).to_be_focused()
    page.keyboard.press("Enter")
    expect(hit("teacher", 0)).to_have_attribute("aria-expanded", "true")
    # A list is one tab stop: Tab moves to the same place in the next list.
    page.keyboard.press("Tab")
    expect(hit("student", 9)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Query").first).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Search")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Query").first).to_be_focused()


# Compares every text's colour with the first opaque background behind it.
POOR_CONTRAST = """() => {
  const parsed = (css) => {
    const [r, g, b, a = 1] = css.match(/[\\d.]+/g).map(Number);
    return css.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parsed(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest("noscript")) continue;
    const pair = [light(parsed(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scroll_and_all_text_has_contrast(visit, scheme):
    page = visit(
        viewport={"width": 360, "height": 740}, color_scheme=scheme, reduced_motion="reduce"
    )
    for query in ("number", "w" * 300):
        search(page, query)
        page.locator(".teacher button.hit").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(POOR_CONTRAST) == []
    durations = (
        "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).transitionDuration)"
    )
    assert set(page.evaluate(durations)) == {"0s"}


def test_without_passages_the_page_explains_and_compares_texts(visit, release):
    def without_corpora(route):
        answer = route.fetch()
        about = answer.json() if answer.ok else {}
        route.fulfill(response=answer, json={**about, "corpora": []} if about else None)

    page = visit(unlocked=False)
    page.route("**/playground/about", without_corpora)
    unlock(page)
    expect(page.locator("#status")).to_contain_text("contains no corpus")
    page.get_by_label("Query").last.fill("a question")
    page.get_by_label("Passage").fill("an answer")
    page.get_by_role("button", name="Compare").click()
    encoder = load_encoder(release / "student")
    query, passage = (
        encoder.encode(["a question"], "query"),
        encoder.encode(["an answer"], "passage"),
    )
    cosine = float(query[0] @ passage[0])
    expect(page.locator("#scores .student dd")).to_have_text(f"{cosine:.3f}")


def test_the_page_needs_no_key_but_its_requests_do(url):
    page = httpx.get(url)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"\son\w+=|style=|<script>|<style>", page.text)
    body = {"release": "tiny", "corpus": "numbers", "query": "x", "passage": "y"}
    for method, path in [
        ("GET", "about"), ("GET", "map?release=tiny&corpus=numbers"),
        ("POST", "search"), ("POST", "compare"),
    ]:  # fmt: skip
        answer = httpx.request(method, f"{url}/playground/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"release": "huge"}, 404, "release"),
        ({"corpus": "none"}, 404, "corpus"),
        ({"query": ""}, 400, "query"),
        ({"hits": 51}, 400, "hits"),
        ({"limit": 1}, 400, "limit"),
    ],
)
def test_an_invalid_search_gets_the_api_s_error_body(url, body, status, param):
    request = {"release": "tiny", "corpus": "numbers", "query": "x", **body}
    answer = httpx.post(f"{url}/playground/search", json=request, headers=KEY)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_disabled_playground_serves_neither_page_nor_data(url):
    for path in ("", "playground/page/playground.js", "playground/about"):
        assert httpx.get(f"{url}/off/{path}").status_code == 404
    assert httpx.get(f"{url}/off/healthz").status_code == 200
