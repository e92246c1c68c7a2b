"""Rules of contamination, and recall of planted contamination among real texts."""

import itertools
import json
import pickle
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.data.cleaning import contamination_index
from stillroom.data.cleaning import decontaminate as decontaminate_module
from stillroom.data.cleaning.contamination_index import MATCH_KINDS, ContaminationIndex
from stillroom.data.cleaning.contamination_report import ContaminationReport
from stillroom.data.cleaning.decontaminate import decontaminate
from stillroom.data.cleaning.overlap_index import GRAM_WORDS, GramCounts, OverlapIndex
from stillroom.data.cleaning.word_hashes import hash_words, split_words
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.docstrings import docstring_pairs
from stillroom.data.readers.records import EvaluationSet, Pair
from stillroom.reports.contamination import MATCH_EXPLANATIONS, render_contamination
from support.text_edits import EDITS, edit

LONG = (
    "A stillroom is where a great house once distilled its herbs and flowers into cordials, "
    "medicines and scents; the word has outlived most of the rooms, and nearly all of the stills."
)
OTHER = (
    "Rivers that rise on chalk run clear and at an even temperature, because rain is held for "
    "months in the rock before springs let it go, so trout grow in them all year."
)


def evaluation(pairs):
    """An evaluation set in which the passage of each pair answers its query."""
    return EvaluationSet(
        {f"p{i}": pair.passage for i, pair in enumerate(pairs)},
        {f"q{i}": pair.query for i, pair in enumerate(pairs)},
        {f"q{i}": {f"p{i}": 1} for i in range(len(pairs))},
    )


def kinds(texts, tested):
    """The kind of each text's match with the tested text, or None."""
    index = ContaminationIndex.build({"set": evaluation([Pair(tested, "answer")])})
    hits = decontaminate([Pair("", text) for text in texts], index)[1]
    kind_of_pair = {hit.pair: hit.kind for hit in hits}
    return [kind_of_pair.get(i) for i in range(len(texts))]


# --- rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tested", "text", "kind"),
    [
        ("What is distilled?", "what is DISTILLED", "copy"),
        ("What is C++?", "What is C?", None),
        (LONG, LONG.replace("; ", " (").upper() + ")", "copy"),
        (LONG, LONG.replace("great", "grand").replace("most", "many"), "edited"),
        (LONG, " ".join(LONG.split()[:14]), "part"),
        (LONG, f"{OTHER} {LONG} {OTHER}", "contains"),
        (LONG, f"{OTHER} {OTHER} {' '.join(LONG.split()[5:18])} {OTHER}", "overlap"),
        (LONG, f"{OTHER} {OTHER} {' '.join(LONG.split()[5:13])} {OTHER}", None),
        (LONG, OTHER, None),
        # Short texts: a typo or swapped words match; another number or another name does not.
        ("capital of france today", "capital of frnace today", "edited"),
        ("capital of france today", "france capital of today", "edited"),
        ("capital of france today", "capital of spain today", None),
        ("introspection data for the gcr library", "introspection data for the bamf library", None),
        ("winner of 1998 cup", "winner of 1994 cup", None),
        ("capital of france today", f"the capital of france today is warm. {OTHER}", None),
        # Texts of eight words or more are also searched inside others, word for word.
        (
            "how do I sort a list of dates",
            f"So: how do I sort a list of dates? {OTHER}",
            "contains",
        ),
        ("how do I sort a list of dates", f"So: how do I sort a bag of dates? {OTHER}", None),
        ("how do I sort a list of dates", "how do you sort a list of dates", "edited"),
        # Scripts without spaces.
        (
            "蒸馏室是大宅里把草药和花朵蒸馏成药酒和香水的地方",
            "蒸馏室是大宅中把草药和花朵蒸馏成药酒与香水的地方。",
            "edited",
        ),
        (
            "蒸馏室是大宅里把草药和花朵蒸馏成药酒和香水的地方",
            "从白垩层涌出的河流清澈见底,水温终年不变,鳟鱼因此四季生长。",
            None,
        ),
        ("蒸馏室在哪里", "蒸馏室 在哪里?", "copy"),
        ("…", "!", None),
    ],
)
def test_a_text_matches_as_the_rules_say(tested, text, kind):
    assert kinds([text], tested) == [kind]


def test_judged_queries_and_answers_are_dropped_and_searched_passages_are_no_negatives():
    evaluation_set = EvaluationSet(
        {"p1": "answer", "p2": OTHER, "p3": LONG, "p4": "irrelevant"},
        {"q1": "asked", "q2": "not judged", "q3": "also asked"},
        {"q1": {"p1": 1, "p4": 0}, "q3": {"p3": 2}},
    )
    pairs = [
        Pair("ASKED", "a"),
        Pair("b", "Answer "),
        Pair("c", LONG + " Another version."),
        Pair("d", OTHER, ("answer", OTHER, LONG + " A third.", "free", "asked")),
        Pair("not judged", "irrelevant"),
        Pair("answer", "e"),
    ]
    index = ContaminationIndex.build({"set": evaluation_set})
    clean, hits = decontaminate(pairs, index)
    assert [(hit.pair, hit.what, hit.kind, hit.role, hit.id) for hit in hits] == [
        (0, "query", "copy", "query", "q1"),
        (1, "passage", "copy", "answer", "p1"),
        (2, "passage", "edited", "answer", "p3"),
        (5, "query", "copy", "answer", "p1"),
    ]
    assert clean == [Pair("d", OTHER, ("free", "asked")), pairs[4]]
    # Without `drop` the pairs stay, but tested passages still leave their negatives.
    reported, same_hits = decontaminate(pairs, index, drop=False)
    assert (reported, same_hits) == ([*pairs[:3], *clean, pairs[5]], hits)
    # In a set named in `whole`, every passage counts as an answer.
    whole_index = ContaminationIndex.build({"set": evaluation_set}, whole={"set"})
    assert [hit.pair for hit in decontaminate(pairs, whole_index)[1]] == [0, 1, 2, 3, 4, 5]
    assert decontaminate(pairs, ContaminationIndex.build({})) == (pairs, [])
    assert decontaminate([], index) == ([], [])


def test_a_common_phrase_is_no_contamination():
    phrases = [
        f"This is about item{i}a, item{i}b, item{i}c and of course item{i}d." for i in range(60)
    ]
    training = [Pair(f"query {i}", f"{text} {LONG}") for i, text in enumerate(phrases[:5])]
    few = evaluation([Pair(f"asked {i}", f"{text} {LONG}") for i, text in enumerate(phrases[5:10])])
    many = evaluation([Pair(f"asked {i}", f"{text} {LONG}") for i, text in enumerate(phrases[5:])])
    assert len(decontaminate(training, ContaminationIndex.build({"set": few}))[1]) == 5
    assert decontaminate(training, ContaminationIndex.build({"set": many}))[1] == []
    # A text of nothing but common phrases is still a copy.
    copy = [Pair("a", phrases[7] + LONG)]
    assert len(decontaminate(copy, ContaminationIndex.build({"set": many}))[1]) == 1


@pytest.fixture(scope="module")
def docstrings():
    """(pairs of networkx, pairs of other packages)."""
    return (
        list(docstring_pairs(["networkx"], min_passage_characters=100)),
        list(docstring_pairs(["peft", "fsspec"], min_passage_characters=100)),
    )


@pytest.fixture(scope="module")
def index(docstrings):
    return ContaminationIndex.build({"set": evaluation(docstrings[0])})


# --- fast and slow --------------------------------------------------------------------------


def test_the_index_finds_what_comparing_every_two_texts_finds(docstrings):
    tested = [pair.passage for pair in docstrings[0][:80]]
    random = Random(5)
    others = [pair.passage for pair in docstrings[1]]
    searched = [edit(kind, text, random, others) for kind in EDITS for text in tested[:8]]
    searched += others[:20]
    known, words = hash_words(tested), hash_words(searched)
    # The counts are empty, so no phrase is common.
    overlaps = OverlapIndex.build(known, GramCounts(1)).search(words, run_words=13)
    shares = zip(overlaps.text_share, overlaps.row_share, overlaps.shares_run, strict=True)
    fast = dict(zip(zip(overlaps.text, overlaps.row, strict=True), shares, strict=True))
    assert len(fast) > 80 and set(overlaps.word_weight) == {1.0}
    lists = [split_words(text) for text in searched], [split_words(text) for text in tested]
    grams = [[_grams(text, GRAM_WORDS) for text in texts] for texts in lists]
    rows = [[set(_grams(text, 13)) for text in texts] for texts in lists]
    for i, row in itertools.product(range(len(searched)), range(len(tested))):
        text_share = _slow_share(grams[0][i], grams[1][row])
        row_share = _slow_share(grams[1][row], grams[0][i])
        shares_run = not rows[0][i].isdisjoint(rows[1][row])
        if (i, row) in fast:
            np.testing.assert_allclose(fast[i, row], (text_share, row_share, shares_run))
        else:
            shorter = min(words.counts[i], known.counts[row])
            assert not shares_run and (max(text_share, row_share) < 0.6 or shorter < 13)


def _grams(words, length):
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _slow_share(grams, others):
    known, covered = set(others), set()
    for i, gram in enumerate(grams):
        if gram in known:
            covered.update(range(i, i + GRAM_WORDS))
    return len(covered) / max(1, len(grams) + GRAM_WORDS - 1)


def test_chunks_processes_and_order_change_nothing(docstrings, monkeypatch):
    tested, others = docstrings
    random = Random(1)
    planted = [Pair("a", edit("all four", pair.passage, random, ["b c"])) for pair in tested[:20]]
    pairs = [*others[:30], *planted, *others[30:40]]
    index = ContaminationIndex.build({"set": evaluation(tested[:40])})
    clean, hits = decontaminate(pairs, index)
    assert len(hits) >= 19
    monkeypatch.setattr(contamination_index, "CHUNK_TEXTS", 7)
    monkeypatch.setattr(decontaminate_module, "CHUNK_PAIRS", 7)
    assert decontaminate(pairs, pickle.loads(pickle.dumps(index))) == (clean, hits)
    backwards = decontaminate(pairs[::-1], index)[0]
    assert backwards == clean[::-1]
    contained_passages = index.contains_many([pair.passage for pair in pairs])
    assert contained_passages.tolist() == [index.contains(pair.passage) for pair in pairs]
    contained = {i for i, is_contained in enumerate(contained_passages) if is_contained}
    assert contained <= {hit.pair for hit in hits}


def test_the_index_is_small_compared_with_its_texts(docstrings, index):
    texts = docstrings[0]
    tables = index.overlap_index.gram_counts.counters.nbytes + index.overlap_index.prefixes.nbytes
    size = sum(len(pair.query) + len(pair.passage) for pair in texts)
    assert len(pickle.dumps(index)) - tables < 2.5 * size
    assert tables < 2.5 * size


# --- recall ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITS)
def test_planted_contamination_is_found(docstrings, index, kind):
    tested, others = docstrings
    texts = [text for pair in tested for text in (pair.query, pair.passage)]
    texts = Random(3).sample([text for text in texts if len(text.split()) >= 16], 250)
    random, other_passages = Random(7), [pair.passage for pair in others]
    planted = [Pair("", edit(kind, text, random, other_passages)) for text in texts]
    recall = len(decontaminate(planted, index)[1]) / len(texts)
    print(f"{kind}: {recall:.4f}")
    assert recall >= (0.99 if kind in ("copied", "respelled") else 0.95)


def test_clean_texts_of_the_same_domain_are_rarely_hits(docstrings, index):
    others = docstrings[1]
    hits = decontaminate(others, index)[1]
    print([(hit.kind, hit.score, hit.text) for hit in hits])
    assert len(hits) <= 0.01 * len(others)


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_matches_by_meaning_equal_brute_force(length):
    """A model that dot compares gives raw vectors, and matches are by cosine all the same."""
    random = np.random.default_rng(0)

    def units(count):
        vectors = random.normal(size=(count, 16)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    tested = evaluation([Pair(f"query {i}", f"passage {i}") for i in range(50)])
    rows = {"query": units(50), "passage": units(50)}
    index = ContaminationIndex.build(
        {"set": tested}, embed=lambda texts, role: length * rows[role][: len(texts)]
    )
    noise = units(50)
    paraphrases = rows["passage"] * 0.97 + noise * 0.2
    paraphrases /= np.linalg.norm(paraphrases, axis=1, keepdims=True)
    vectors_of_role = {"query": noise, "passage": paraphrases}
    pairs = [Pair(f"other question {i}", f"in other words {i}") for i in range(50)]
    _, hits = decontaminate(
        pairs,
        index,
        embed=lambda texts, role: vectors_of_role[role][: len(texts)] / length,
        similarity=0.9,
    )
    assert {hit.kind for hit in hits} == {"meaning"}
    tested_vectors = np.concatenate([rows["query"], rows["passage"]])
    cosines = {role: vectors_of_role[role] @ tested_vectors.T for role in vectors_of_role}
    best = np.maximum(cosines["query"].max(axis=1), cosines["passage"].max(axis=1))
    assert [hit.pair for hit in hits] == np.flatnonzero(best >= 0.9).tolist() and len(hits) > 25
    for hit in hits:
        assert hit.score == pytest.approx(best[hit.pair], abs=1e-4)
        assert hit.id == f"p{hit.pair}"
    assert decontaminate(pairs, index) == (pairs, [])


# --- reports and command --------------------------------------------------------------------


def test_every_hit_is_counted_and_the_first_of_each_set_are_listed_with_both_texts():
    sets = {"one": evaluation([Pair("<b>asked</b>", LONG)]), "two": evaluation([Pair("x", OTHER)])}
    index = ContaminationIndex.build(sets)
    report = ContaminationReport(sets, max_listed=2)
    for chunk in ([Pair("b asked b", "p"), Pair("a", OTHER)], [Pair("c", LONG)] * 3):
        report.add("own", len(chunk), decontaminate(chunk, index)[1])
    report.add("other", 1, [])
    content = json.loads(json.dumps(report.as_json()))
    assert (content["found"], content["checked"]) == (5, {"own": 5, "other": 1})
    assert content["counts"] == [
        {"source": "own", "set": "one", "kind": "copy", "pairs": 4},
        {"source": "own", "set": "two", "kind": "copy", "pairs": 1},
    ]
    listed = [(hit["set"], hit["pair"], hit["id"]) for hit in content["hits"]]
    assert listed == [("one", 0, "q0"), ("two", 1, "p0"), ("one", 2, "p0")]
    assert content["hits"][0]["text"] == "b asked b"
    assert content["hits"][0]["evaluation_text"] == "<b>asked</b>"
    page = render_contamination(content, "own")
    for shown in (
        "5 of 6 pairs",
        "The first 2 of 4",
        "&lt;b&gt;asked&lt;/b&gt;",
        "b asked b",
        OTHER,
    ):
        assert shown in page
    assert tuple(MATCH_EXPLANATIONS) == MATCH_KINDS


def test_the_command_decontaminates_files(tmp_path):
    write_beir(evaluation([Pair("asked", LONG)]), tmp_path / "set")
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"query": "a", "positive": OTHER, "negatives": [LONG, "free"]},
        {"query": "b", "positive": LONG.upper()},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "decontaminate", "--pairs", file, "--against", tmp_path / "set"]

    def run(*more):
        return CliRunner().invoke(app, [str(word) for word in (*words, *more)])

    done = run("--out", file, "--report", tmp_path / "report.html", "--json")
    assert done.exit_code == 0, done.output
    counts = [{"source": str(file), "set": "set", "kind": "copy", "pairs": 1}]
    assert json.loads(done.stdout)["counts"] == counts
    assert json.loads(file.read_text()) == {"query": "a", "positive": OTHER, "negatives": ["free"]}
    assert LONG.upper() in (tmp_path / "report.html").read_text()
    # Errors are reported before anything is written.
    before = file.read_text() + '{"query": "c"}\n'
    file.write_text(before)
    failed = run("--out", file)
    assert failed.exception.where == f"{file}:2" and file.read_text() == before
    assert run("--report", "report.pdf").exception.where == "--report report.pdf"
    assert run("--against", tmp_path / "set").exception.fix == "Rename one"
