"""The corpus stage, run on the files of two sources and a real store."""

import dataclasses
import hashlib
import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stillroom.config.corpus import Corpus
from stillroom.config.scale import Scale
from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.cleaning.decontaminate import decontaminate
from stillroom.data.cleaning.sampling import random_ranks
from stillroom.data.cleaning.text_keys import beginning_key, hash_texts, normalise, text_key
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.records import EvaluationSet, Pair
from stillroom.encoders.contract import Prompts
from stillroom.errors import UserError
from stillroom.stages.corpus import stage
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets
from stillroom.stages.corpus.languages import read_languages
from stillroom.stages.corpus.shards import ChunkSizes
from stillroom.stages.corpus.stage import corpus
from stillroom.storage.artifacts import Store
from support.scripts import exact_match_pairs


def long_text(label):
    """A text so long that near copies of it count as copies; it differs for each label."""
    words = "so many words that two which begin with them are taken for copies of one another"
    return " ".join(f"{word}{label}{half}" for half in "ab" for word in words.split())


LONG = long_text("tested")
TESTED = EvaluationSet(
    {"p1": "the tested answer", "p2": "searched, but no answer", "p3": f"a tested {LONG} answer"},
    {"q": "the tested query"},
    {"q": {"p1": 1, "p3": 1}},
)


def pair(name, number, **more):
    return {
        "query": f"{name} query {number}",
        "positive": f"{name} {number}, {long_text(f'{name}{number}')} {name}",
        **more,
    }


def pairs(name, count):
    return [pair(name, number) for number in range(count)]


class CorpusResult:
    """A corpus artifact that was read back."""

    def __init__(self, artifact, summary):
        self.artifact, self.summary = artifact, summary
        self.files = CorpusData.open(artifact)
        self.sources = json.loads((artifact.path / "sources.json").read_text())

    def pairs(self, source):
        """(query, positive) of the pairs of a source."""
        rows = zip(
            self.files.queries, self.files.positive_rows, self.files.pair_sources, strict=True
        )
        wanted_number = self.files.source_names.index(source)
        return [
            (query, self.files.passages[row])
            for query, row, source_number in rows
            if source_number == wanted_number
        ]

    def rows(self):
        """(source, pair) of every pair, with texts for rows; (passage, source) of every passage."""
        files = self.files
        pairs = [
            (
                int(source),
                Pair(query, files.passages[row], tuple(files.passages[i] for i in negatives)),
            )
            for query, row, negatives, source in zip(
                files.queries,
                files.positive_rows,
                files.negative_rows,
                files.pair_sources,
                strict=True,
            )
        ]
        return pairs, list(zip(files.passages, files.passage_sources.tolist(), strict=True))


@pytest.fixture
def make(tmp_path):
    """Runs the stage.

    `sources` is name → fields of the recipe, with rows in place of files. The rows are written to
    files of `cut` rows each.
    """
    write_beir(TESTED, tmp_path / "tested")

    def make(sources, cut=1000, **section):
        source_fields = {}
        for name, fields in sources.items():
            source_fields[name] = {"format": "files", **fields}
            for kind in {"pairs", "passages", "conversations"} & set(fields):
                source_fields[name][kind] = []
                for start in range(0, len(fields[kind]), cut):
                    file = tmp_path / f"{name}-{kind}-{start}.jsonl"
                    rows = fields[kind][start : start + cut]
                    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
                    source_fields[name][kind].append(str(file))
        content = {
            "sources": source_fields,
            "evaluation": {"tested": str(tmp_path / "tested")},
            **section,
        }
        section_config = Corpus.model_validate_json(json.dumps(content))
        store = Store(str(tmp_path / "runs"))
        with store.draft("corpus", "two", f"k{len(store.list_artifacts())}") as draft:
            summary = corpus(section=section_config, seed=3, scale=Scale(), out=draft)
            return CorpusResult(draft.publish({}), summary)

    return make


def test_every_pair_keeps_its_source_and_every_source_its_prompts(make):
    prompts = {"query": "Instruct: Find it\nQuery: ", "passage": ""}
    result = make(
        {
            "own": {"pairs": pairs("own", 5)},
            "other": {"pairs": pairs("other", 3), "prompts": prompts, "symmetric": True},
        }
    )
    assert result.files.source_names == ["own", "other"]
    assert result.files.source_prompts == [None, Prompts(**prompts)]
    assert [source["symmetric"] for source in result.sources] == [False, True]
    for name, count in (("own", 5), ("other", 3)):
        assert result.pairs(name) == [(row["query"], row["positive"]) for row in pairs(name, count)]


def test_a_held_out_set_keeps_the_prompts_of_its_source(make):
    prompts = {"query": "Instruct: Find it\nQuery: ", "passage": ""}
    sources = {"plain": {"pairs": pairs("own", 9)}, "prompted": {"pairs": pairs("other", 9)}}
    sources["prompted"]["prompts"] = prompts
    for source, expected in (("plain", {}), ("prompted", prompts)):
        held_out = {"queries": 1, "passages": 2, "source": source}
        sets = read_evaluation_sets(make(sources, held_out=held_out).artifact)
        assert sets["held-out"].prompts == expected


def test_a_positive_belongs_to_its_pair_s_source_and_other_passages_to_the_first_source(make):
    answer = pair("other", 1)["positive"]
    result = make(
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
    files = result.files
    source_of_passage = dict(zip(files.passages, files.passage_sources.tolist(), strict=True))
    assert len(source_of_passage) == len(files.passages), "a text stands in two rows"
    assert source_of_passage == {
        pair("own", 1)["positive"]: 0,
        answer: 1,
        "a negative of both": 0,
        "in both": 0,
        "in the other": 1,
    }
    assert [*files.negative_rows[0]] == [*files.negative_rows[1], files.positive_rows[1]]


@pytest.mark.promise("mining")
def test_a_pair_is_never_its_own_negative_and_has_none_twice(make):
    only_pair = pair("own", 1)
    only_pair["negatives"] = ["one", only_pair["positive"], "two", "One"]
    files = make({"own": {"pairs": [only_pair]}}).files
    assert [[files.passages[row] for row in rows] for rows in files.negative_rows] == [
        ["one", "two"]
    ]


def test_a_pair_in_two_sources_counts_once_in_the_first(make):
    first = {"query": "Asked twice", "positive": "answered twice"}
    again = {"query": "asked TWICE", "positive": "Answered  twice"}
    result = make(
        {"own": {"pairs": [pair("own", 1), first]}, "other": {"pairs": [again, *pairs("o", 2)]}}
    )
    assert ("Asked twice", "answered twice") in result.pairs("own")
    assert [query for query, _ in result.pairs("other")] == ["o query 0", "o query 1"]
    counts = result.summary["sources"]
    assert counts["own"]["pairs"]["repeated_passages"] == 0
    assert counts["other"]["pairs"]["repeated_passages"] == 1


def test_no_source_trains_on_near_copies_of_held_out_passages(make):
    held_out = {"queries": 2, "passages": 5, "source": "own"}
    like = [pair("own", number) for number in range(12)]
    for number, row in enumerate(like):
        row["query"], row["positive"] = f"asked otherwise {number}", row["positive"] + ", revised"
    texts = [{"text": row["positive"] + " again"} for row in like]
    carrier = pair("carrier", 1, negatives=[text["text"] for text in texts])
    result = make(
        {
            "other": {"pairs": [*like, carrier], "passages": texts},
            "own": {"pairs": pairs("own", 12)},
        },
        held_out=held_out,
    )
    tested = read_evaluation_sets(result.artifact)["held-out"]
    assert len(tested.passages) == 5 and all(q.startswith("own") for q in tested.queries.values())
    beginnings = {beginning_key(text) for text in tested.passages.values()}
    assert not beginnings & {beginning_key(text) for text in result.files.passages}
    # The other seven are training data: in both sources, and as passages.
    assert (len(result.pairs("other")), len(result.pairs("own"))) == (7 + 1, 7)
    assert sum(text.endswith("again") for text in result.files.passages) == 7
    counts = result.summary["sources"]
    assert (counts["other"]["pairs"]["held_out"], counts["own"]["pairs"]["held_out"]) == (5, 5)


def test_contaminated_rows_are_dropped_from_every_source(make):
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
    result = make(
        {
            "own": {"pairs": [*pairs("own", 2), leaks[0]]},
            "other": {
                "pairs": [*leaks[1:], *pairs("other", 2)],
                "passages": [{"text": "searched, but no answer"}, {"text": "free"}],
                "conversations": talk,
            },
        }
    )
    assert len(result.pairs("own")) == len(result.pairs("other")) == 2
    assert [*result.files.conversations] == [("fine", "so")]
    assert (
        "free" in result.files.passages and "searched, but no answer" not in result.files.passages
    )
    counts = result.summary["sources"]
    assert (counts["own"]["pairs"]["contaminated"], counts["other"]["pairs"]["contaminated"]) == (
        1,
        2,
    )
    assert counts["other"]["conversations"]["tested"] == 3
    assert counts["other"]["passages"]["tested"] == 1


def test_repeated_conversations_are_kept_once_and_without_any_there_is_no_file(make):
    prompted, chat = {"prompt": "a", "completion": "b"}, {"text": ["c", "d"]}
    result = make(
        {
            "own": {"pairs": pairs("own", 2), "conversations": [prompted, prompted]},
            "other": {"conversations": [{"prompt": "a ", "completion": "B"}, chat]},
        }
    )
    assert [*result.files.conversations] == [("a", "b"), ("User:\nc\n\nAssistant:\n", "d")]
    assert result.summary["sources"]["own"]["conversations"]["repeated"] == 1
    assert result.summary["sources"]["other"]["conversations"]["repeated"] == 1
    without = make({"own": {"pairs": pairs("own", 2)}})
    assert not without.files.conversations
    assert not (without.artifact.path / "conversations").exists()


def test_at_most_max_pairs_of_each_source_are_trained_on(make):
    sources = {"own": {"pairs": pairs("own", 30)}, "other": {"pairs": pairs("other", 4)}}
    result = make(sources, max_pairs=10, held_out={"queries": 2, "passages": 3})
    assert (len(result.pairs("own")), len(result.pairs("other"))) == (10, 4)
    assert [query for query, _ in result.pairs("own")] != [f"own query {i}" for i in range(10)]
    assert result.summary["sources"]["own"]["pairs"]["beyond_max_pairs"] == 30 - 3 - 10


def test_counts_add_up_and_equal_the_rows_of_the_tables(make):
    both = {"query": "both", "positive": "of both"}
    result = make(
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
    for kinds in result.summary["sources"].values():
        for counts in kinds.values():
            assert counts["read"] == sum(n for reason, n in counts.items() if reason != "read")
    passage_counts = [kinds["passages"] for kinds in result.summary["sources"].values()]
    assert [(count["kept"], count["repeated"], count["tested"]) for count in passage_counts] == [
        (1, 1, 1),
        (0, 1, 0),
    ]
    files = result.files
    tables = {
        "pairs": len(files.queries),
        "passages": len(files.passages),
        "conversations": len(files.conversations),
    }
    assert {kind: result.summary[kind] for kind in tables} == tables
    for kind, count in tables.items():
        assert sum(source["counts"][kind] for source in result.sources) == count > 0
    assert json.loads((result.artifact.path / "counts.json").read_text()) == result.summary


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
def test_a_source_with_nothing_left_is_an_error(make, other, problem):
    with pytest.raises(UserError) as caught:
        make({"own": {"pairs": pairs("own", 3)}, "other": other})
    assert (caught.value.where, caught.value.problem) == ("corpus.sources.other", problem)


# --- at any size ----------------------------------------------------------------------------


def slow_corpus(sources, seed, held_out, max_pairs):
    """The expected `CorpusResult.rows`, computed in memory one pair after the other."""
    everything = [
        (number, Pair(row["query"], row["positive"], tuple(row["negatives"])))
        for number, fields in enumerate(sources.values())
        for row in fields["pairs"]
    ]
    known_pairs = {(text_key(pair.query), text_key(pair.passage)) for _, pair in everything}
    remaining = [
        (source, pair)
        for source, pair in everything
        if text_key(pair.query) != text_key(pair.passage)
    ]
    for name in ("passage", "query"):
        first = {}
        for source, pair in remaining:
            first.setdefault(text_key(getattr(pair, name)), (source, pair))
        remaining = list(first.values())
    beginnings = {}
    for source, pair in remaining:
        if source == 0:
            beginning = beginning_key(pair.passage)
            beginnings.setdefault(beginning, (random_ranks(hash_texts([beginning]), seed)[0], pair))
    held_out_beginnings = dict(sorted(beginnings.items(), key=lambda item: item[1][0])[:held_out])
    tested = [pair for _, pair in held_out_beginnings.values()]
    remaining = [
        (source, pair)
        for source, pair in remaining
        if source or beginning_key(pair.passage) not in held_out_beginnings
    ]
    held_out_set = EvaluationSet(
        {str(i): pair.passage for i, pair in enumerate(tested)},
        {"0": tested[0].query},
        {"0": {"0": 1}},
    )
    index = ContaminationIndex.build(
        {"tested": TESTED, "held-out": held_out_set}, whole={"held-out"}
    )
    clean = [(source, pair) for source, pair in remaining if decontaminate([pair], index)[0]]
    sampled = []
    for wanted_source in range(len(sources)):
        source_pairs = [(source, pair) for source, pair in clean if source == wanted_source]
        order = np.argsort(
            [random_ranks(hash_texts([normalise(pair.query)]), seed)[0] for _, pair in source_pairs]
        )
        sampled += [source_pairs[i] for i in sorted(order[:max_pairs])]
    rows = {}
    for source, pair in sampled:
        rows[text_key(pair.passage)] = (pair.passage, source)
    pairs = []
    for source, pair in sampled:
        negatives = {}
        for text in pair.negatives:
            if text_key(text) == text_key(pair.passage) or text_key(text) in negatives:
                continue
            if (text_key(pair.query), text_key(text)) not in known_pairs and not index.contains(
                text
            ):
                rows.setdefault(text_key(text), (text, source))
                negatives[text_key(text)] = rows[text_key(text)][0]
        pairs.append((source, dataclasses.replace(pair, negatives=tuple(negatives.values()))))
    for number, fields in enumerate(sources.values()):
        for row in fields.get("passages", ()):
            text = row["text"].strip()  # the reader strips passages, because they may have a title
            if not index.contains(text):
                rows.setdefault(text_key(text), (text, number))
    return pairs, list(rows.values())


word = st.sampled_from([f"w{i}" for i in range(14)] + ["W1", "the tested answer", "w2  "])
row = st.builds(
    lambda query, positive, negatives: {
        "query": query, "positive": positive, "negatives": negatives
    },
    word, word, st.lists(word, max_size=4),
)  # fmt: skip
distinct = [
    {"query": f"own {i}", "positive": f"of its own {i}", "negatives": ["w3", f"of its own {i + 1}"]}
    for i in range(6)
]


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.reuse, Phase.generate],  # no shrinking: each example takes too long
)
@given(
    st.lists(row, max_size=25),
    st.lists(row, max_size=15),
    st.lists(word.map(lambda text: {"text": text.strip()}), max_size=9),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_the_corpus_equals_that_of_a_slow_implementation_for_any_chunk_size(
    make, monkeypatch, own, other, passages, cut, rows, records, groups
):
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(rows=rows, records=records, groups=groups))
    sources = {"own": {"pairs": own + distinct}, "other": {"pairs": [*other, pair("x", 1)]}}
    sources["other"]["pairs"][-1]["negatives"] = []
    if passages:
        sources["other"]["passages"] = [*passages, {"text": "of the end"}]
    result = make(sources, cut=cut, max_pairs=7, held_out={"queries": 1, "passages": 2})
    assert result.rows() == slow_corpus(sources, 3, held_out=2, max_pairs=7)


MANY = {
    "own": {
        "pairs": [pair("own", i % 40, negatives=[f"some {i % 7}", f"of {i}"]) for i in range(60)],
        "passages": [{"text": f"some {i}"} for i in range(20)],
        "conversations": [{"prompt": f"{i % 5}", "completion": "b"} for i in range(8)],
    },
    "other": {"pairs": pairs("other", 20)},
}


def test_parallel_and_serial_runs_write_the_same_files(ray_cluster, make, monkeypatch):
    options = {"cut": 16, "max_pairs": 30, "held_out": {"queries": 1, "passages": 4}}
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(rows=20, records=60))
    serial_files = make(MANY, **options).artifact.manifest["files"]
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(rows=20, records=60, serial_bytes=0))
    assert make(MANY, **options).artifact.manifest["files"] == serial_files


def test_the_corpus_is_the_one_that_earlier_versions_made(make):
    """Of every kind of row some are dropped for every reason that there is."""
    own = [
        {
            "query": f"own {i % 50}",
            "positive": words(i % 45),
            "negatives": [words(i + 1), f"short {i % 6}", f"short {i % 3}", "the tested answer"],
        }
        for i in range(60)
    ]
    copies = [{"query": f"copy {i}", "positive": f"{words(i)} more"} for i in range(30, 70)]
    passages = [{"text": words(i) + " and so on" * (i % 2)} for i in range(40, 90)]
    result = make(
        {
            "own": {"pairs": [*own, {"query": "the tested query", "positive": "so"}]},
            "other": {
                "pairs": [{"query": "same", "positive": "Same"}, *copies],
                "passages": [*passages, *passages[:5], {"text": "the tested answer"}],
                "conversations": [{"prompt": f"{i % 5}", "completion": "b"} for i in range(8)],
            },
        },
        near_duplicates={"min_jaccard": 0.8},
        held_out={"queries": 2, "passages": 5},
        max_pairs={"own": 30, "other": 12},
    )
    content = [result.rows(), [*result.files.conversations], result.summary["sources"]]
    digest = hashlib.sha256(json.dumps(content, default=dataclasses.astuple).encode()).hexdigest()
    assert digest[:16] == "892862f818a77dd0"


@pytest.mark.parametrize("small", [1 << 20, 0], ids=["one process", "Ray"])
def test_a_bad_line_leaves_no_artifact(ray_cluster, make, tmp_path, monkeypatch, small):
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(rows=2, serial_bytes=small))
    wrong = [*pairs("own", 9), {"query": "q"}]
    with pytest.raises(UserError) as caught:
        make({"own": {"pairs": wrong}, "other": {"pairs": pairs("other", 9)}}, cut=4)
    assert caught.value.where == f"{tmp_path}/own-pairs-8.jsonl:2"
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == [
        tmp_path / "runs" / ".locks" / "corpus-two-k0.lock"
    ]


@pytest.mark.promise("mining")
def test_a_negative_that_is_a_positive_of_the_same_query_is_dropped_and_counted(make):
    rows = [
        {"query": "Which?", "positive": "this", "negatives": ["that", "neither"]},
        {"query": "which?", "positive": "That"},  # dropped, but still an answer
        {"query": "who?", "positive": "she", "negatives": ["this", "That"]},
    ]
    result = make({"own": {"pairs": rows[:1]}, "other": {"pairs": rows[1:]}})
    given_negatives = [
        [result.files.passages[i] for i in negatives] for negatives in result.files.negative_rows
    ]
    assert given_negatives == [["neither"], ["this", "That"]]
    counts = {name: kinds["negatives"] for name, kinds in result.summary["sources"].items()}
    assert (counts["own"]["conflicts"], counts["other"]["conflicts"]) == (1, 0)


def words(number, count=60):
    return " ".join(f"{(number * 7919 + i * i) % 997}" for i in range(count))


def test_near_copies_are_dropped_within_and_across_sources_if_configured(make):
    own_rows = [{"query": f"own {i}", "positive": words(i)} for i in range(12)]
    copies = [
        {"query": f"copy {i}", "positive": words(i).replace(" ", "\n", 3) + " more"}
        for i in range(5)
    ]
    texts = [{"text": words(i) + " again"} for i in (0, 40)] + [{"text": words(40) + " and again"}]
    sources = {
        "own": {"pairs": [*own_rows, copies[0]], "passages": texts},
        "other": {"pairs": [*copies[1:], pair("other", 1)]},
    }
    result = make(sources, near_duplicates={"min_jaccard": 0.8})
    assert [query for query, _ in result.pairs("own")] == [row["query"] for row in own_rows]
    assert [query for query, _ in result.pairs("other")] == ["other query 1"]
    assert result.files.passages[-1] == words(40) + " again"
    counts = result.summary["sources"]
    assert counts["own"]["pairs"]["near_copies"] == 1
    assert counts["other"]["pairs"]["near_copies"] == 4
    assert counts["own"]["passages"]["near_copies"] == 2
    assert len(make(sources).files.queries) == 12 + 5 + 1


def test_a_shard_of_which_no_row_is_left_has_no_near_copies(make, monkeypatch):
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(rows=4))
    rows = [{"query": f"own {i}", "positive": words(i)} for i in range(4)]
    texts = [{"text": words(9)}] + [{"text": "the tested answer"}] * 7
    sources = {"own": {"pairs": [*rows, *rows], "passages": texts}}
    result = make(sources, near_duplicates={"min_jaccard": 0.8})
    assert (len(result.files.queries), len(result.files.passages)) == (4, 5)


def test_max_pairs_can_be_set_per_source(make):
    sources = {name: {"pairs": pairs(name, 9)} for name in ("own", "other", "third")}
    result = make(sources, max_pairs={"own": 2, "third": 30})
    assert [len(result.pairs(name)) for name in sources] == [2, 9, 9]


def test_held_out_and_sampled_pairs_do_not_depend_on_other_pairs(make):
    options = {"max_pairs": 6, "held_out": {"queries": 1, "passages": 4}}
    single = make({"own": {"pairs": pairs("own", 20)}}, **options)
    reversed_pairs = make(
        {"own": {"pairs": pairs("own", 20)[::-1]}, "other": {"pairs": pairs("other", 9)}}, **options
    )
    assert single.pairs("own") == reversed_pairs.pairs("own")[::-1]
    tested = [
        read_evaluation_sets(result.artifact)["held-out"] for result in (single, reversed_pairs)
    ]
    assert tested[0] == tested[1]


def test_the_data_card_says_what_was_dropped_and_why(make):
    sources = {"own": {"pairs": [*pairs("own", 8), pair("own", 1)], "license": "CC-BY-4.0"}}
    result = make(sources, max_pairs=5, held_out={"queries": 1, "passages": 2})
    card = (result.artifact.path / "card.md").read_text()
    assert "| own | files | CC-BY-4.0 | English | 5 of 9 |" in card
    steps = [line.split(" | ")[:3] for line in re.findall(r"^\| (.* \| .*) \|$", card, re.M)]
    assert [step for step in steps if step[0] in ("read", "repeated_passages", "held_out")] == [
        ["read", "", "9"],
        ["repeated_passages", "−1", "8"],
        ["held_out", "−2", "6"],
    ]
    assert ["beyond_max_pairs", "−1", "5"] in steps and ["tested", "English", "1"] in steps


# --- languages ------------------------------------------------------------------------------

GERMAN = "die Quelle Nummer {} fließt das ganze Jahr klar und kalt durch das Tal am Rand des Waldes"


def german_pairs(count):
    return [
        {"query": f"wie klar ist Quelle {number}", "positive": GERMAN.format(number)}
        for number in range(count)
    ]


def test_the_language_of_each_source_and_each_set_is_detected_and_written(make, caplog):
    with caplog.at_level("INFO"):
        result = make({"own": {"pairs": pairs("own", 4)}, "tal": {"pairs": german_pairs(30)}})
    expected = {"sources": {"own": "en", "tal": "de"}, "evaluation": {"tested": "en"}}
    assert result.summary["languages"] == read_languages(result.artifact) == expected
    assert result.files.source_languages == ["en", "de"]
    assert set(result.files.languages_of("passage")) == {"en", "de"}
    assert "languages of sources, detected: own English, tal German" in caplog.text
    assert "| tal | files | not stated | German |" in (result.artifact.path / "card.md").read_text()


def test_the_language_of_the_recipe_is_taken_for_all_texts(make):
    result = make({"own": {"pairs": pairs("own", 4)}}, language="de")
    assert result.summary["languages"] == {"sources": {"own": "de"}, "evaluation": {"tested": "de"}}


def test_an_unknown_language_is_refused_before_anything_is_read(make):
    with pytest.raises(ValueError, match="'german' is no known language: use de"):
        make({"own": {"pairs": pairs("own", 4)}}, language="german")


def test_composed_and_decomposed_passages_are_near_copies_in_every_script(make):
    passages = [exact_match_pairs(language, 1)[0][1] for language in ("ko", "de", "hi")]
    rows = [
        {"query": f"{form} {i}", "positive": unicodedata.normalize(form, passage) + end}
        for i, passage in enumerate(passages)
        for form, end in (("NFC", ""), ("NFD", "!"))
    ]
    result = make({"own": {"pairs": rows}}, near_duplicates={"min_jaccard": 0.8})
    assert result.summary["sources"]["own"]["pairs"]["near_copies"] == len(passages)
