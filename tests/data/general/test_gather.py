"""General texts: what is gathered, in which lengths, and what is left out; and guards of it."""

import json
from collections import Counter

import numpy as np
import pytest

from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.general import gather as gathering
from stillroom.data.general import guards as making
from stillroom.data.general.gather import gather, is_query
from stillroom.data.general.guards import make_guards
from stillroom.data.general.pieces import is_prose, pieces
from stillroom.data.readers.machine_texts import Document
from stillroom.data.text.words import count_words
from stillroom.errors import UserError
from support.scripts import ALPHABETS, exact_match_pairs

WORDS = [
    "water", "stone", "light", "paper", "green", "river", "house", "music", "field", "glass",
]  # fmt: skip


def sentence(rng, words):
    return " ".join(rng.choice(WORDS, size=words)).capitalize() + "."


def document(source, number, paragraphs=3):
    rng = np.random.default_rng([len(source), number])
    body = [" ".join(sentence(rng, 9) for _ in range(8)) for _ in range(paragraphs)]
    title = f"{sentence(rng, 5)[:-1]} {source} {' '.join(rng.choice(WORDS, size=2))}"
    return Document(source, f"{source}{number}", title, tuple(body))


@pytest.fixture
def machine(monkeypatch):
    """A machine of two sources of 40 documents, and one of 4."""
    sizes = {"manuals": 40, "docstrings": 40, "readmes": 4}

    def documents(source, *, without_packages=()):
        return iter([document(source, number) for number in range(sizes.get(source, 0))])

    monkeypatch.setattr(gathering, "documents", documents)
    monkeypatch.setattr(making, "documents", documents)
    return documents


def test_lengths_range_from_a_query_to_a_passage(machine):
    texts = gather(max_texts=300, sources=["manuals", "docstrings"]).texts
    counts = np.array([count_words(text) for text in texts])
    assert counts.max() <= 220
    for shortest, longest in ((1, 12), (13, 40), (41, 220)):
        assert ((counts >= shortest) & (counts <= longest)).mean() > 0.15
    assert any(is_query(text) for text in texts) and not all(is_query(text) for text in texts)


def test_a_title_of_one_word_opens_the_body_whose_subject_it_is():
    one = Document("dictionaries", "small:1", "Tea", ("A drink that is made of leaves.",))
    assert list(pieces(one)) == ["Tea: A drink that is made of leaves."]


def test_each_dictionary_has_twice_the_turns_of_another_source(machine, monkeypatch, tmp_path):
    def with_dictionaries(source, *, without_packages=()):
        return iter([document(source, number) for number in range(40)])

    monkeypatch.setattr(gathering, "documents", with_dictionaries)
    monkeypatch.setattr(gathering, "dictionary_files", lambda: [tmp_path / "a", tmp_path / "b"])
    gathered = gather(max_texts=30, sources=["dictionaries", "manuals"])
    assert Counter(gathered.sources) == {"dictionaries": 24, "manuals": 6}


def test_every_word_of_a_body_is_in_one_text_and_code_in_none(machine):
    one = document("manuals", 1)
    title, *texts = pieces(one)
    assert title == one.title
    body = " ".join(one.paragraphs)
    # The rest of the last piece may be shorter than a text has to be.
    assert body.startswith(" ".join(texts)) and len(body) - len(" ".join(texts)) < 40
    assert not is_prose(">>> numpy.zeros(3)") and not is_prose("| 1 | 2.0 | 3.5 | 4 |")
    assert is_prose("水は石より軽い") and is_prose("Light is a wave, and a particle.")


def test_texts_of_any_script_are_prose_and_keep_their_spaces():
    for language in ALPHABETS:
        [(_, body)] = exact_match_pairs(language, 1)
        assert is_prose(body)
    chinese = "河里的水一年四季都很清澈冰凉。" * 12 + "“真的吗？”他说：“是 Linux 内核！”"
    [*texts] = pieces(Document("readmes", "a", "水", (chinese,)))
    assert "".join(texts) == f"水: {chinese}"
    assert all(text.endswith(("。", "”")) for text in texts)
    thai = "น้ำในแม่น้ำใส และเย็นตลอดทั้งปี"
    assert " ".join(pieces(Document("readmes", "a", "", (thai,)))) == thai


def test_sources_take_turns_and_a_small_one_gives_all_that_it_has(machine):
    gathered = gather(max_texts=200, sources=["manuals", "docstrings", "readmes"])
    counts = Counter(gathered.sources)
    everything = gather(max_texts=10_000, sources=["readmes"])
    assert counts["readmes"] + gathered.duplicates["readmes"] == len(everything.texts)
    assert abs(counts["manuals"] - counts["docstrings"]) <= 1
    assert len(gathered.texts) == 200


def test_what_is_gathered_is_always_the_same_and_has_an_identity(machine):
    first, again = (gather(max_texts=50, sources=["manuals"]) for _ in range(2))
    assert first.texts == again.texts and first.identity() == again.identity()
    assert gather(max_texts=49, sources=["manuals"]).identity() != first.identity()


def test_repeated_texts_are_left_out_and_counted(machine, tmp_path):
    rows = ["The same text, twice over.", "the same  TEXT, twice over.", "Another text of words."]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    gathered = gather(sources=(), files=[str(tmp_path / "rows.jsonl")])
    assert gathered.texts == [rows[0], rows[2]]
    assert gathered.as_json()["sources"]["files"] == {
        "texts": 2, "words": 9, "duplicates": 1, "tested": 0,
    }  # fmt: skip


def test_documents_of_your_own_are_a_source_like_the_others(machine, tmp_path):
    (tmp_path / "notes.md").write_text("The first paragraph of it.\n\nAnd the second one of it.\n")
    counts = Counter(gather(max_texts=6, sources=["manuals"], files=[str(tmp_path)]).sources)
    assert counts["files"] >= 1 and counts["manuals"] >= 3


def test_a_text_of_an_evaluation_set_is_left_out_and_counted(machine):
    guard = make_guards(sets=1, queries=30, passages=35, words=60)["made-of-manuals"]
    index = ContaminationIndex.build({"guard": guard.dataset}, whole=["guard"])
    free = gather(max_texts=10_000, sources=["manuals"], is_tested=index.touches_many)
    asked = set(guard.dataset.queries.values())
    assert free.tested["manuals"] >= len(asked)
    assert not asked & set(free.texts)
    assert not index.touches_many(free.texts).any()


def test_documents_of_a_guard_are_not_gathered(machine):
    guard = make_guards(sets=1, queries=30, passages=35, words=60)["made-of-manuals"]
    free = gather(max_texts=10_000, sources=["manuals"], without_units=guard.units)
    assert len(guard.units) == 35
    titles = {document("manuals", number).title for number in range(40)}
    assert len(titles & set(free.texts)) == 5


def test_a_made_guard_asks_with_titles_and_answers_with_bodies(machine):
    guards = make_guards(sets=3, queries=30, passages=35, words=20, used_packages=None)
    assert list(guards) == ["made-of-manuals"], "all docstrings are the corpus's, READMEs are few"
    dataset = guards["made-of-manuals"].dataset
    assert dataset.counts() == {"queries": 30, "passages": 35}
    for query, grades in dataset.qrels.items():
        [passage] = grades
        assert dataset.queries[query] not in dataset.passages[passage]
        assert count_words(dataset.passages[passage]) <= 20
    again = make_guards(sets=3, queries=30, passages=35, words=20, used_packages=None)
    assert again["made-of-manuals"].dataset == dataset


def test_a_machine_without_texts_is_told_what_to_install(machine):
    with pytest.raises(UserError, match="none was found in dictionaries") as error:
        gather(max_texts=10, sources=["dictionaries"])
    assert "dict-gcide" in error.value.fix
