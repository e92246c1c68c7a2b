"""The stage itself, on the files of two sources, into a real store."""

import json

import pytest

from stillroom.artifacts import Store
from stillroom.config import Corpus, Scale
from stillroom.encoders.contract import Prompts
from stillroom.errors import UserError
from stillroom.stages.corpus import CorpusFiles, corpus, evaluation_sets
from stillroom.text.dedupe import near_key
from stillroom.text.formats import EvaluationSet, write_beir


def long(own):
    """Words enough for two texts with them to be taken for copies, and nobody else's."""
    words = "so many words that two which begin with them are taken for copies of one another"
    return " ".join(f"{word}{own}{half}" for half in "ab" for word in words.split())


LONG = long("tested")
TESTED = EvaluationSet(
    {"p1": "the tested answer", "p2": "searched, but no answer", "p3": f"a tested {LONG} answer"},
    {"q": "the tested query"},
    {"q": {"p1": 1, "p3": 1}},
)


def pair(name, number, **more):
    return {
        "query": f"{name} query {number}",
        "positive": f"{name} {number}, {long(f'{name}{number}')} {name}",
        **more,
    }


def pairs(name, count):
    return [pair(name, number) for number in range(count)]


class Made:
    """What came of the sources."""

    def __init__(self, artifact, summary):
        self.artifact, self.summary = artifact, summary
        self.files = CorpusFiles.read(artifact)
        self.sources = json.loads((artifact.path / "sources.json").read_text())

    def pairs(self, source):
        """(query, positive) of the pairs under a source's number."""
        rows = zip(self.files.queries, self.files.positive, self.files.source, strict=True)
        number = self.files.sources.index(source)
        return [(query, self.files.passages[row]) for query, row, of in rows if of == number]


@pytest.fixture
def make(tmp_path):
    """Runs the stage. Sources are name → fields of the recipe, with rows in place of files."""
    write_beir(TESTED, tmp_path / "tested")

    def make(sources, **section):
        named = {}
        for name, fields in sources.items():
            named[name] = {"format": "files", **fields}
            for kind in {"pairs", "passages", "conversations"} & set(fields):
                file = tmp_path / f"{name}-{kind}.jsonl"
                file.write_text("".join(json.dumps(row) + "\n" for row in fields[kind]))
                named[name][kind] = [str(file)]
        content = {"sources": named, "evaluation": {"tested": str(tmp_path / "tested")}, **section}
        read = Corpus.model_validate_json(json.dumps(content))
        store = Store(str(tmp_path / "runs"))
        with store.draft("corpus", "two", f"k{len(store.published())}") as draft:
            summary = corpus(section=read, seed=3, scale=Scale(), out=draft)
            return Made(draft.publish({}), summary)

    return make


def test_every_pair_keeps_its_source_and_every_source_its_prompts(make):
    prompts = {"query": "Instruct: Find it\nQuery: ", "passage": ""}
    made = make(
        {
            "own": {"pairs": pairs("own", 5)},
            "other": {"pairs": pairs("other", 3), "prompts": prompts, "symmetric": True},
        }
    )
    assert made.files.sources == ["own", "other"]
    assert made.files.prompts == [None, Prompts(**prompts)]
    assert [source["symmetric"] for source in made.sources] == [False, True]
    for name, count in (("own", 5), ("other", 3)):
        assert made.pairs(name) == [(row["query"], row["positive"]) for row in pairs(name, count)]


def test_a_held_out_set_keeps_the_prompts_of_its_source(make):
    prompts = {"query": "Instruct: Find it\nQuery: ", "passage": ""}
    sources = {"plain": {"pairs": pairs("own", 9)}, "told": {"pairs": pairs("other", 9)}}
    sources["told"]["prompts"] = prompts
    for source, expected in (("plain", {}), ("told", prompts)):
        held_out = {"queries": 1, "passages": 2, "source": source}
        sets = evaluation_sets(make(sources, held_out=held_out).artifact)
        assert sets["held-out"].prompts == expected


def test_a_positive_is_of_its_pair_s_source_and_other_passages_of_the_first_that_has_them(make):
    answer = pair("other", 1)["positive"]
    made = make(
        {
            "own": {
                "pairs": [pair("own", 1, negatives=["a negative of both", answer])],
                "passages": [{"text": answer}, {"text": "in both"}],
            },
            "other": {
                "pairs": [pair("other", 1, negatives=["A negative  of both"])],
                "passages": [{"text": "in both"}, {"text": "in the other"}],
            },
        }
    )
    files = made.files
    found = dict(zip(files.passages, files.passage_source.tolist(), strict=True))
    assert len(found) == len(files.passages), "a text stands in two rows"
    assert found == {
        pair("own", 1)["positive"]: 0,
        answer: 1,
        "a negative of both": 0,
        "in both": 0,
        "in the other": 1,
    }
    assert files.negatives[0] == [*files.negatives[1], files.positive[1]]


def test_a_pair_is_never_its_own_negative_and_has_none_twice(make):
    own = pair("own", 1)
    own["negatives"] = ["one", own["positive"], "two", "One"]
    files = make({"own": {"pairs": [own]}}).files
    assert [[files.passages[row] for row in rows] for rows in files.negatives] == [["one", "two"]]


def test_a_pair_that_two_sources_have_counts_once_in_the_first(make):
    first = {"query": "Asked twice", "positive": "answered twice"}
    again = {"query": "asked TWICE", "positive": "Answered  twice"}
    made = make(
        {"own": {"pairs": [pair("own", 1), first]}, "other": {"pairs": [again, *pairs("o", 2)]}}
    )
    assert ("Asked twice", "answered twice") in made.pairs("own")
    assert [query for query, _ in made.pairs("other")] == ["o query 0", "o query 1"]
    counts = made.summary["sources"]
    assert counts["own"]["pairs"]["repeated_passages"] == 0
    assert counts["other"]["pairs"]["repeated_passages"] == 1


def test_near_copies_of_held_out_passages_are_trained_on_in_no_source(make):
    held_out = {"queries": 2, "passages": 5, "source": "own"}
    like = [pair("own", number) for number in range(12)]
    for number, row in enumerate(like):
        row["query"], row["positive"] = f"asked otherwise {number}", row["positive"] + ", revised"
    texts = [{"text": row["positive"] + " again"} for row in like]
    carrier = pair("carrier", 1, negatives=[text["text"] for text in texts])
    made = make(
        {
            "other": {"pairs": [*like, carrier], "passages": texts},
            "own": {"pairs": pairs("own", 12)},
        },
        held_out=held_out,
    )
    tested = evaluation_sets(made.artifact)["held-out"]
    assert len(tested.passages) == 5 and all(q.startswith("own") for q in tested.queries.values())
    beginnings = {near_key(text) for text in tested.passages.values()}
    assert not beginnings & {near_key(text) for text in made.files.passages}
    # The other seven are trained on: in both sources, and as passages.
    assert (len(made.pairs("other")), len(made.pairs("own"))) == (7 + 1, 7)
    assert sum(text.endswith("again") for text in made.files.passages) == 7
    counts = made.summary["sources"]
    assert (counts["other"]["pairs"]["held_out"], counts["own"]["pairs"]["held_out"]) == (5, 5)


def test_what_an_evaluation_set_asks_or_answers_is_taken_out_of_every_source(make):
    leaks = [
        {"query": "The tested query", "positive": "a way out"},
        {"query": "another", "positive": "The tested answer"},
        {"query": "a third", "positive": f"a tested {LONG} answer, revised"},
    ]
    talk = [
        {"prompt": "the tested query", "completion": "well"},
        {"text": ["Hi", "Hello", "The tested query", "a way out"]},
        {"prompt": "go on", "completion": "the tested answer"},
        {"prompt": "fine", "completion": "so"},
    ]
    made = make(
        {
            "own": {"pairs": [*pairs("own", 2), leaks[0]]},
            "other": {
                "pairs": [*leaks[1:], *pairs("other", 2)],
                "passages": [{"text": "searched, but no answer"}, {"text": "free"}],
                "conversations": talk,
            },
        }
    )
    assert len(made.pairs("own")) == len(made.pairs("other")) == 2
    assert made.files.conversations == [("fine", "so")]
    assert "free" in made.files.passages and "searched, but no answer" not in made.files.passages
    counts = made.summary["sources"]
    assert (counts["own"]["pairs"]["contaminated"], counts["other"]["pairs"]["contaminated"]) == (
        1,
        2,
    )
    assert counts["other"]["conversations"]["tested"] == 3
    assert counts["other"]["passages"]["tested"] == 1


def test_conversations_of_all_sources_are_kept_once_and_without_any_there_is_no_file(make):
    one, two = {"prompt": "a", "completion": "b"}, {"text": ["c", "d"]}
    made = make(
        {
            "own": {"pairs": pairs("own", 2), "conversations": [one, one]},
            "other": {"conversations": [{"prompt": "a ", "completion": "B"}, two]},
        }
    )
    assert made.files.conversations == [("a", "b"), ("User:\nc\n\nAssistant:\n", "d")]
    assert made.summary["sources"]["own"]["conversations"]["repeated"] == 1
    assert made.summary["sources"]["other"]["conversations"]["repeated"] == 1
    without = make({"own": {"pairs": pairs("own", 2)}})
    assert without.files.conversations == []
    assert not (without.artifact.path / "conversations.parquet").exists()


def test_at_most_max_pairs_of_each_source_are_trained_on(make):
    sources = {"own": {"pairs": pairs("own", 30)}, "other": {"pairs": pairs("other", 4)}}
    made = make(sources, max_pairs=10, held_out={"queries": 2, "passages": 3})
    assert (len(made.pairs("own")), len(made.pairs("other"))) == (10, 4)
    assert [query for query, _ in made.pairs("own")] != [f"own query {i}" for i in range(10)]
    assert made.summary["sources"]["own"]["pairs"]["beyond_max_pairs"] == 30 - 3 - 10


def test_counts_add_up_and_are_those_of_the_tables(make):
    both = {"query": "both", "positive": "of both"}
    made = make(
        {
            "own": {
                "pairs": [*pairs("own", 20), both, {"query": "x", "positive": "X"}],
                "passages": [{"text": "more"}, {"text": "More"}, {"text": "the tested answer"}],
                "conversations": [{"prompt": "a", "completion": "b"}] * 2,
            },
            "other": {"pairs": [both, *pairs("other", 8)], "passages": [{"text": "more"}]},
        },
        max_pairs=6,
        held_out={"queries": 1, "passages": 4},
    )
    for kinds in made.summary["sources"].values():
        for counts in kinds.values():
            assert counts["read"] == sum(n for reason, n in counts.items() if reason != "read")
    files = made.files
    tables = {
        "pairs": len(files.queries),
        "passages": len(files.passages),
        "conversations": len(files.conversations),
    }
    assert {kind: made.summary[kind] for kind in tables} == tables
    for kind, count in tables.items():
        assert sum(source["counts"][kind] for source in made.sources) == count > 0
    assert json.loads((made.artifact.path / "counts.json").read_text()) == made.summary


def test_the_same_sources_make_the_same_files(make):
    sources = {
        "own": {"pairs": pairs("own", 20), "passages": [{"text": f"more {i}"} for i in range(9)]},
        "other": {"pairs": pairs("other", 9), "conversations": [{"text": ["a", "b"]}]},
    }
    settings = {"max_pairs": 6, "held_out": {"queries": 1, "passages": 4}}
    first, second = (make(sources, **settings).artifact.manifest["files"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"pairs": [pair("own", 1)]}, "none of its pairs is left (1 read, 1 repeated_passages)"),
        (
            {"conversations": [{"prompt": "the tested query", "completion": "x"}]},
            "none of its conversations is left (1 read, 1 tested)",
        ),
    ],
)
def test_a_source_of_which_nothing_is_left_is_named(make, other, problem):
    with pytest.raises(UserError) as caught:
        make({"own": {"pairs": pairs("own", 3)}, "other": other})
    assert (caught.value.where, caught.value.problem) == ("corpus.sources.other", problem)
