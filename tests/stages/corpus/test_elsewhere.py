"""Guards and general texts of a corpus: what is held back from training, counted and refused."""

import json

import pytest

from stillroom.config.corpus import Corpus
from stillroom.config.evaluation import Evaluation, MadeGuards
from stillroom.config.scale import Scale
from stillroom.data.general import gather as gathering
from stillroom.data.general import guards as making
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.machine_texts import Document
from stillroom.data.readers.records import EvaluationSet
from stillroom.errors import UserError
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets, read_guards
from stillroom.stages.corpus.stage import corpus
from stillroom.stages.student import selection_sets
from stillroom.storage.artifacts import Store


def words(label, count=24):
    """Words that no other label has."""
    return " ".join(f"{label}{'abcdefghijklmnopqrstuvwxyz'[i]}" for i in range(count))


def name(number):
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def guard(label, count=20):
    texts = {f"p{i}": words(f"{label}{name(i)}") for i in range(count)}
    queries = {f"q{i}": words(f"asks{label}{name(i)}", 6) for i in range(count // 2)}
    return EvaluationSet(texts, queries, {f"q{i}": {f"p{i}": 1} for i in range(count // 2)})


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Runs the corpus stage on 60 pairs, and on a machine of 120 manual pages and 60 packages."""

    def documents(source, *, without_packages=()):
        count = {"manuals": 120, "packages": 60}.get(source, 0)
        title, body = ("title", "m") if source == "manuals" else ("package", "p")
        return iter(
            [
                Document(
                    source, f"{source}{i}", words(f"{title}{name(i)}", 5), (words(body + name(i)),)
                )
                for i in range(count)
            ]
        )

    monkeypatch.setattr(gathering, "documents", documents)
    monkeypatch.setattr(making, "documents", documents)

    def run(pairs=(), evaluation=None, passages=(), **section):
        own = [
            {"query": words(f"q{name(i)}", 6), "positive": words(f"a{name(i)}")} for i in range(60)
        ]
        files = {"pairs": [*own, *pairs], "passages": [{"text": text} for text in passages]}
        source = {"format": "files"}
        for kind, rows in files.items():
            if rows:
                file = tmp_path / f"{kind}.jsonl"
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
                source[kind] = [str(file)]
        content = {
            "sources": {"own": source}, "held_out": {"queries": 4, "passages": 8}, **section,
        }  # fmt: skip
        store = Store(str(tmp_path / "runs"))
        with store.draft("corpus", "one", f"k{len(store.list_artifacts())}") as draft:
            summary = corpus(
                section=Corpus.model_validate_json(json.dumps(content)),
                seed=3, evaluation=evaluation, scale=Scale(), out=draft,
            )  # fmt: skip
            return draft.publish({}), summary

    return run


@pytest.fixture
def given(tmp_path):
    """A guard that a recipe names."""
    write_beir(guard("elsewhere"), tmp_path / "guards" / "elsewhere")
    return Evaluation(guards=str(tmp_path / "guards"))


def test_a_student_s_best_weights_are_chosen_by_the_corpus_and_by_other_fields(make, given):
    artifact, _ = make(evaluation=given)
    assert {*selection_sets(artifact)} == {*read_evaluation_sets(artifact), "elsewhere"}


def test_guards_are_kept_apart_from_the_corpus_s_own_sets(make, given):
    artifact, summary = make(evaluation=given)
    assert list(read_guards(artifact)) == ["elsewhere"]
    assert list(read_evaluation_sets(artifact)) == ["held-out"]
    assert summary["guards"] == {"elsewhere": {"queries": 10, "passages": 20, "matched": 0}}
    assert "elsewhere" in (artifact.path / "card.md").read_text()


def test_a_training_text_that_copies_any_text_of_a_guard_is_dropped(make, given):
    unjudged = guard("elsewhere").passages["p19"]
    copies = [{"query": words("mine", 6), "positive": unjudged}]
    for decontaminate in ({"action": "drop"}, {"action": "report"}):
        artifact, summary = make(copies, given, [], decontaminate=decontaminate)
        assert unjudged not in CorpusData.open(artifact).passages
        assert summary["guards"]["elsewhere"]["matched"] == 1
    query = guard("elsewhere").queries["q1"]
    artifact, summary = make((), given, [query, "a passage of my own"])
    assert query not in CorpusData.open(artifact).passages
    assert summary["guards"]["elsewhere"]["matched"] == 1


def test_a_guard_of_the_training_texts_field_is_refused_by_name(make, given):
    copied = list(guard("elsewhere").passages.values())[:5]
    rows = [
        {"query": words(f"mine{name(i)}", 6), "positive": text} for i, text in enumerate(copied)
    ]
    with pytest.raises(UserError, match="evaluation.guards: elsewhere") as error:
        make(rows, given)
    assert "of its 30 texts are among the training texts, such as" in error.value.problem


def test_a_guard_named_as_one_of_the_corpus_s_sets_is_refused(make, given, tmp_path):
    (tmp_path / "guards" / "elsewhere").rename(tmp_path / "guards" / "held-out")
    with pytest.raises(UserError, match="is also the name of one of the corpus's own sets"):
        make(evaluation=given)


MADE = Evaluation(made_guards=MadeGuards(sets=1, queries=30, passages=40, words=20))


def test_guards_are_made_where_the_recipe_names_none(make):
    artifact, summary = make(evaluation=MADE)
    [made] = read_guards(artifact)
    assert made == "made-of-manuals"
    assert summary["guards"][made] == {"queries": 30, "passages": 40, "matched": 0}


def test_a_made_guard_of_the_corpus_s_field_is_left_out_and_the_corpus_says_so(make):
    pages = [words(f"m{name(i)}") for i in range(30)]
    artifact, summary = make(passages=pages, evaluation=MADE)
    assert read_guards(artifact) == {}
    assert "are among the training texts" in summary["guards"]["made-of-manuals"]["left_out"]


def test_general_texts_are_neither_pairs_nor_passages_and_have_the_role_of_their_length(make):
    artifact, summary = make(texts={"general": 50, "sources": ["manuals"]})
    files = CorpusData.open(artifact)
    assert len(files.general_queries) + len(files.general_passages) == 50
    assert all(len(text.split()) <= 16 for text in files.general_queries)
    assert all(len(text.split()) > 16 for text in files.general_passages)
    assert not {*files.general_passages} & {*files.passages}
    general = summary["general"]
    assert general["texts"] == general["sources"]["manuals"]["texts"] == 50
    assert general["identity"] in (artifact.path / "card.md").read_text()
    assert list(files.all_texts("query")) == [*files.queries, *files.general_queries]


def test_general_texts_hold_nothing_of_guards_or_of_the_corpus_s_sets(make):
    # A page that the corpus holds out, and pages of which the guard is made.
    pairs = [
        {"query": words(f"title{name(i)}", 5), "positive": words(f"m{name(i)}")}
        for i in range(60, 120)
    ]
    texts = {"general": 1000, "sources": ["manuals"]}
    artifact, summary = make(pairs, MADE, texts=texts, held_out={"queries": 60, "passages": 60})
    data = CorpusData.open(artifact)
    general = {*data.general_queries, *data.general_passages}
    [made], held_out = read_guards(artifact).values(), read_evaluation_sets(artifact)["held-out"]
    tested = [*held_out.queries.values(), *held_out.passages.values()]
    assert not general & {*made.queries.values(), *made.passages.values(), *tested}
    known = {words(f"title{name(i)}", 5) for i in range(40, 120)} - {*tested}
    assert known <= general
    from_pages = [text for text in tested if text.startswith(("title", "m"))]
    assert summary["general"]["sources"]["manuals"]["tested"] == len(from_pages) > 0


def test_a_source_of_a_made_guard_is_kept_out_of_general_texts_where_there_is_another(make):
    guards = Evaluation(made_guards=MadeGuards(sets=3, queries=30, passages=40, words=20))
    texts = {"general": 1000, "sources": ["manuals", "packages"]}
    artifact, summary = make(evaluation=guards, texts=texts)
    assert list(read_guards(artifact)) == ["made-of-manuals", "made-of-packages"]
    assert list(summary["general"]["sources"]) == ["manuals"]
    assert summary["general"]["kept_apart"] == ["packages"]
    artifact, summary = make(evaluation=MADE, texts=texts)  # one guard: its source has the rest
    assert summary["general"]["sources"].keys() == {"manuals", "packages"}
    only = {"general": 1000, "sources": ["packages"]}
    artifact, summary = make(evaluation=guards, texts=only)  # no text would be left
    assert summary["general"]["kept_apart"] == []
