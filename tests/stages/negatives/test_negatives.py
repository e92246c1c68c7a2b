"""The negatives stage, compared with loops over every query and passage."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from stillroom.config.corpus import Corpus
from stillroom.config.recipe import Ivf, Negatives
from stillroom.config.scale import Scale, SearchActors
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.vectors.stored import shard_path, write_array, write_order
from stillroom.errors import UserError
from stillroom.mining.bm25 import Bm25
from stillroom.mining.exact import row_dots, search
from stillroom.mining.select import EVALUATION, KNOWN, NEAR_POSITIVE, select_negatives
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.corpus.stage import corpus
from stillroom.stages.negatives.known import find_known_texts
from stillroom.stages.negatives.mine import mine, selection_rule
from stillroom.stages.negatives.miners import Bm25Miner, DenseMiner, SharedActors
from stillroom.stages.negatives.stage import negatives
from stillroom.stages.negatives.texts import corpus_texts
from stillroom.storage.artifacts import Store

DIMS = 16
LONG = (
    "the same opening of boilerplate that two copies share, letter for letter and all along, " * 2
)
# This set searches p1, which is also a training passage; p2 answers its query.
TESTED = EvaluationSet(
    {"p1": "passage 3 about bees", "p2": "the tested answer"},
    {"q": "the tested query"},
    {"q": {"p2": 1}},
)


pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclasses.dataclass
class MiningCorpus:
    store: Any
    corpus: Any
    files: CorpusData

    def vectors(self, queries, passages, key, shard=7):
        """Publishes the vectors as an artifact, in shuffled shards."""
        with self.store.draft("vectors", "own", key) as draft:
            for name, vectors in (("queries", queries), ("passages", passages)):
                folder = draft.path / name
                folder.mkdir()
                order = np.random.default_rng(1).permutation(len(vectors))
                write_order(folder, order)
                for i in range(-(-len(vectors) // shard)):
                    rows = order[i * shard : (i + 1) * shard]
                    write_array(shard_path(folder, i), vectors[rows].astype(np.float16))
            return draft.publish({})

    def run_stage(self, key, scale=None, searched=True, **fields):
        """Runs the stage; returns (negatives, scores, counts)."""
        vectors = {name: fields.pop(name) for name in list(fields) if name.startswith("vectors")}
        section = Negatives(include_evaluation_passages=searched, **fields)
        with self.store.draft("negatives", "own", key) as draft:
            negatives(
                section=section, seed=5, corpus=self.corpus, out=draft, **vectors,
                scale=Scale(negatives=scale or SearchActors()),
            )  # fmt: skip
            artifact = draft.publish({})
        counts = json.loads((artifact.path / "counts.json").read_text())
        return (
            np.load(artifact.path / "negatives.npy"),
            np.load(artifact.path / "scores.npy"),
            counts,
        )


@pytest.fixture(scope="module")
def mining_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    subjects = ("bees", "snow", "bread")
    rows = [
        {
            "query": f"query {i} on {subjects[i % 3]}",
            "positive": f"passage {i} about {subjects[i % 3]}",
        }
        for i in range(24)
    ]
    rows[0]["positive"], rows[1]["positive"] = LONG + "one", LONG + "another"
    rows[2]["negatives"] = ["a negative that was given", rows[7]["positive"]]
    more = [
        {"text": rows[5]["query"].upper()},
        *({"text": f"more of {s} {i}"} for i in range(6) for s in subjects),
    ]
    for name, content in (("pairs", rows), ("passages", more)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    write_beir(TESTED, folder / "tested")
    files = {kind: [str(folder / f"{kind}.jsonl")] for kind in ("pairs", "passages")}
    content = {
        "sources": {"own": {"format": "files", **files}},
        "evaluation": {"tested": str(folder / "tested")},
    }  # fmt: skip
    store = Store(str(folder / "runs"))
    with store.draft("corpus", "own", "k") as draft:
        section = Corpus.model_validate_json(json.dumps(content))
        corpus(section=section, seed=0, scale=Scale(), out=draft)
        artifact = draft.publish({})
    return MiningCorpus(store, artifact, CorpusData.open(artifact))


def unit(rng, count):
    vectors = rng.normal(size=(count, DIMS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def dense(mining_corpus):
    """(queries, passages), as vectors.

    Queries are near their positives. Positives 0 and 1 have the same vector; so do query 5 and the
    passage with its text.
    """
    rng = np.random.default_rng(2)
    passages = unit(rng, len(mining_corpus.files.passages))
    queries = passages[mining_corpus.files.positive_rows] + 0.3 * unit(
        rng, len(mining_corpus.files.queries)
    )
    passages[mining_corpus.files.positive_rows[1]] = passages[mining_corpus.files.positive_rows[0]]
    query_copy = mining_corpus.files.passages.index(mining_corpus.files.queries[5].upper())
    passages[query_copy] = queries[5] = unit(rng, 1)[0]
    return queries.astype(np.float16), passages


def row_of(mining_corpus, text):
    return mining_corpus.files.passages.index(text)


def known_texts(mining_corpus, searched=True):
    """What is known of the corpus's texts."""
    files = mining_corpus.files
    with tempfile.TemporaryDirectory() as folder:
        return find_known_texts(
            functools.partial(corpus_texts, mining_corpus.corpus),
            files.positive_rows,
            files.negative_rows,
            [TESTED],
            include_evaluation_passages=searched,
            folder=Path(folder),
        )


def selected(mining_corpus, queries, passages, searched=True, **fields):
    """The stage's selection, computed in this process."""
    files, section = mining_corpus.files, Negatives(**fields)
    texts = known_texts(mining_corpus, searched)
    query_vectors = queries.astype(np.float32)
    candidates = search(query_vectors, [(np.arange(len(passages)), passages)], len(passages))
    positive_scores = row_dots(query_vectors, passages[files.positive_rows])
    return select_negatives(
        *candidates,
        positive_score_q=positive_scores,
        texts=texts,
        rule=selection_rule(section),
        seed=0,
    )


@pytest.mark.promise("mining")
def test_the_best_candidates_below_the_limit_are_mined_with_any_actors_and_memory(
    mining_corpus, dense
):
    queries, passages = dense
    vectors = mining_corpus.vectors(queries, passages, "a")
    fields = {"strategy": "top", "per_query": 3, "sample_from": 3}
    scale = SearchActors(actors=2, memory_gib=4e-5)
    rows, scores, counts = mining_corpus.run_stage("a0", scale, vectors=vectors, **fields)
    expected = selected(mining_corpus, queries, passages, **fields)
    np.testing.assert_array_equal(rows, expected.negatives)
    mined = ~np.isnan(expected.scores)
    np.testing.assert_array_equal(scores[mined], expected.scores[mined])
    all_scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    copies = {0: {0, 1}, 1: {0, 1}}
    for q, positive_row in enumerate(mining_corpus.files.positive_rows):
        limit = all_scores[q, positive_row] - abs(all_scores[q, positive_row]) * 0.05
        known = {mining_corpus.files.positive_rows[i] for i in copies.get(q, {q})}
        if q == 5:  # a passage has the text of this query
            known.add(row_of(mining_corpus, mining_corpus.files.queries[5].upper()))
        given_negatives = [row for row in mining_corpus.files.negative_rows[q] if row not in known]
        allowed = [
            row
            for row in np.argsort(-all_scores[q], kind="stable")
            if all_scores[q, row] <= limit and row not in known and row not in given_negatives
        ]
        # Two copies are not both negatives of one query.
        first, second = (mining_corpus.files.positive_rows[i] for i in (0, 1))
        if first in allowed and second in allowed:
            allowed.remove(max(first, second, key=allowed.index))
        assert rows[q].tolist() == [*given_negatives, *allowed][:3]
        np.testing.assert_allclose(scores[q], all_scores[q, rows[q]], atol=1e-3)
    assert counts["rejected"][KNOWN] >= 3
    assert counts["rejected"][NEAR_POSITIVE] > 0
    assert sum(counts["scores"]["negatives"]) == counts["kept"] == (rows >= 0).sum()
    assert sum(counts["scores"]["positives"]) == len(queries)


def test_finished_blocks_are_reused_and_the_rest_is_mined_with_any_memory(
    mining_corpus, dense, tmp_path
):
    vectors = mining_corpus.vectors(*dense, "blocks").path
    open_texts = functools.partial(corpus_texts, mining_corpus.corpus)

    def mined(memory_gib, folder):
        return mine(
            open_texts, known_texts(mining_corpus), {"teacher": vectors}, Negatives(),
            cross_encoder=None, seed=5, scale=SearchActors(memory_gib=memory_gib), folder=folder,
        )  # fmt: skip

    folder, whole = tmp_path / "blocks", tmp_path / "whole"
    whole.mkdir()
    expected = mined(1.0, whole)
    mined(1e-5, tmp_path)
    block_files = sorted(folder.glob("*.npz"))
    assert len(block_files) > 2
    for block in block_files[2:]:
        block.unlink()
    (folder / f"{block_files[2].stem}.partial").write_bytes(b"half of a bl")
    # The first block is altered: the result shows whether it was read or mined again.
    first = dict(np.load(block_files[0]))
    np.savez(block_files[0], **{**first, "positive": first["positive"] + 7})
    result = mined(3e-5, tmp_path)
    np.testing.assert_array_equal(result.negatives, expected.negatives)
    np.testing.assert_array_equal(result.scores, expected.scores)
    assert result.rejected == expected.rejected
    changed = result.positive_scores - expected.positive_scores
    assert changed.tolist() == [7] * len(first["positive"]) + [0] * (
        len(changed) - len(first["positive"])
    )


@pytest.mark.parametrize("ivf", [None, Ivf(min_passages=10, nlist=4, min_recall=0.5)])
def test_a_killed_search_actor_is_restarted_and_searches_again(mining_corpus, dense, ivf):
    folder = mining_corpus.vectors(*dense, "killed-lists" if ivf else "killed").path
    pool = SharedActors(SearchActors(actors=2), reserves_cpus=True, share_count=1)
    searchers = DenseMiner(folder, 8, pool, ivf)
    searchers.choose_probes(8)
    scores, rows = searchers.start_search(0, 24, 8)()
    ray.kill(searchers.actors[1], no_restart=False)
    again = searchers.start_search(0, 24, 8)()
    np.testing.assert_array_equal(again[1], rows)
    np.testing.assert_array_equal(again[0], scores)


@pytest.mark.promise("mining")
def test_passages_of_evaluation_sets_are_never_negatives(mining_corpus, dense):
    queries, passages = dense[0].copy(), dense[1]
    searched = row_of(mining_corpus, TESTED.passages["p1"])
    queries[6] = passages[mining_corpus.files.positive_rows[6]] + 0.9 * passages[searched]
    fields = {"max_share_of_positive": None, "sample_from": 40, "per_query": 40}
    result = selected(mining_corpus, queries, passages, searched=False, **fields)
    assert searched not in result.negatives
    assert result.rejected[EVALUATION] == len(queries) - 1  # all but the query whose positive it is
    result = selected(mining_corpus, queries, passages, searched=True, **fields)
    assert searched in result.negatives[6]
    assert result.rejected[EVALUATION] == 0


def test_a_false_negative_is_refused_by_its_score(mining_corpus, dense):
    queries, passages = dense[0], dense[1].copy()
    planted = row_of(mining_corpus, "more of snow 3")
    # An unjudged answer: within a few per cent as near to the query as the positive.
    passages[planted] = passages[mining_corpus.files.positive_rows[8]] + 0.01 * passages[0]
    fields = {"strategy": "top", "sample_from": 4}
    assert planted not in selected(mining_corpus, queries, passages, **fields).negatives[8]
    fields["max_share_of_positive"] = None
    assert planted in selected(mining_corpus, queries, passages, **fields).negatives[8]


def test_candidates_of_several_miners_are_scored_by_the_model(mining_corpus, dense):
    queries, passages = dense
    vectors = mining_corpus.vectors(queries, passages, "d")
    wide = {"sample_from": 40, "per_query": 40, "max_share_of_positive": None}
    both, scores, _ = mining_corpus.run_stage(
        "d1", miner=("bm25", "teacher"), vectors=vectors, **wide
    )
    exact = queries.astype(np.float64) @ passages.astype(np.float64).T
    for q in range(len(queries)):
        mined = both[q][both[q] >= 0]
        np.testing.assert_allclose(scores[q, : len(mined)], exact[q, mined], atol=1e-3)


def test_bm25_gives_the_same_by_any_number_of_actors(mining_corpus):
    files = mining_corpus.files
    queries = files.queries, files.languages_of("query")
    rows, scores = Bm25(files.passages, files.languages_of("passage")).search(*queries, 9)
    open_texts = functools.partial(corpus_texts, mining_corpus.corpus)
    pool = SharedActors(SearchActors(actors=2), reserves_cpus=True, share_count=1)
    miner = Bm25Miner(open_texts, pool)
    assert len(miner.actors) == 2
    for _ in range(2):
        mined_scores, mined_rows = miner.start_search(0, len(files.queries), 9)()
        np.testing.assert_array_equal(mined_rows, rows)
        np.testing.assert_array_equal(np.maximum(mined_scores, 0), scores)
        np.testing.assert_array_equal(miner.scores(0, rows), mined_scores)
        ray.kill(miner.actors[1], no_restart=False)  # it builds its index again


def test_approximate_search_below_its_recall_floor_is_refused(mining_corpus, dense):
    vectors = mining_corpus.vectors(*dense, "e")
    ivf = {"min_passages": 10, "nlist": 8, "min_recall": 0.99}
    fields = {"vectors": vectors, "strategy": "top", "sample_from": 4}
    with pytest.raises(UserError, match=r"ivf.min_recall: approximate search finds 0\.\d+ of"):
        mining_corpus.run_stage("e0", **fields, ivf=Ivf(**ivf, nprobe=1))


@pytest.mark.parametrize("actors", [1, 2])
def test_lists_are_read_until_the_recall_is_reached_by_any_number_of_actors(
    mining_corpus, dense, actors
):
    vectors = mining_corpus.vectors(*dense, f"probes{actors}")
    rows, scores, counts = mining_corpus.run_stage(
        f"probes{actors}",
        vectors=vectors,
        strategy="top",
        sample_from=4,
        ivf=Ivf(min_passages=10, nlist=8, min_recall=1.0),
        scale=SearchActors(actors=actors),
    )
    # At a recall of 1, results and scores equal those of exact search.
    expected = selected(mining_corpus, *dense, strategy="top", sample_from=4)
    assert counts["recall"] == {"teacher": 1.0}
    np.testing.assert_array_equal(rows, expected.negatives)
    mined = ~np.isnan(expected.scores)
    np.testing.assert_array_equal(scores[mined], expected.scores[mined])
