import subprocess
import sys

import numpy as np
import pytest

from stillroom.data.text.analyser import Analyser
from stillroom.data.text.stop_words import import_bm25s
from stillroom.errors import UserError
from stillroom.mining import bm25 as bm25_module
from stillroom.mining.bm25 import Analysers, Bm25, Bm25Index, Bm25Statistics, WeightedTerms
from stillroom.mining.exact import merge_top_k
from support.scripts import ALPHABETS, exact_match_pairs


def bm25(passages, language="en"):
    return Bm25(passages, [language] * len(passages))


def search(passages, queries, k, language="en"):
    return bm25(passages, language).search(queries, [language] * len(queries), k)


PASSAGES = ["The cats are sleeping on a mat", "a dog barked", "running dogs and running cats", ""]


def test_words_match_across_endings_and_stop_words_do_not():
    rows, scores = search(PASSAGES, ["cat sleeps", "the of and"], 3)
    assert rows[0].tolist() == [0, 2, -1]
    assert scores[0, 0] > scores[0, 1] > 0
    assert rows[1].tolist() == [-1, -1, -1]


def test_scores_follow_lucene_s_formula():
    rows, scores = search(PASSAGES, ["bark"], 1)
    length, average = 2, np.mean([3, 2, 4, 0])  # words without stop words
    idf = np.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 1 / (1 + 1.5 * (1 - 0.75 + 0.75 * length / average))
    assert rows.tolist() == [[1]]
    assert scores[0, 0] == pytest.approx(expected, rel=1e-4)


def test_more_results_than_passages_are_filled_with_minus_one():
    rows, _ = search(PASSAGES, ["dog", "zebra"], 9)
    assert sorted(row for row in rows[0].tolist() if row >= 0) == [1, 2]
    assert rows[1].tolist() == [-1] * 9


def test_passages_without_a_word_are_refused():
    with pytest.raises(UserError, match="no word that BM25 can index"):
        bm25(["", "the"])


@pytest.mark.parametrize("language", ALPHABETS)
def test_a_query_that_stands_word_for_word_in_one_passage_finds_it(language):
    queries, passages = zip(*exact_match_pairs(language), strict=True)
    rows, _ = search(passages, queries, 1, language)
    assert (rows[:, 0] == np.arange(400)).sum() == 400


@pytest.fixture
def random_texts():
    """Passages and queries of frequent and rare words; some are empty."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(200)])
    shares = 1 / np.arange(1, 201)
    shares /= shares.sum()
    return tuple(
        [" ".join(rng.choice(words, size, p=p)) for size in rng.integers(0, longest, count)]
        for count, longest, p in ((300, 40, shares), (50, 9, None))
    )


def test_an_index_in_pieces_gives_the_scores_of_bm25s_bit_for_bit(random_texts, monkeypatch):
    passages, queries = random_texts
    monkeypatch.setattr(bm25_module, "PIECE_ROWS", 64)
    english = ["en"] * 300
    indexes = [
        Bm25Index(passages, english, range(0, 170), on_disk=True),
        Bm25Index(passages, english, range(170, 300), on_disk=True),
    ]
    statistics = Bm25Statistics.total(index.statistics for index in indexes)
    terms = Analysers().query_terms(queries, english[:50])
    frequencies = np.sum([index.frequencies(terms.hashes) for index in indexes], axis=0)
    weighted = WeightedTerms.of(terms, statistics, frequencies)
    every_row = np.broadcast_to(np.arange(300), (50, 300))
    scores = np.maximum(*(index.scores(weighted, every_row) for index in indexes))

    analyser, numbers = Analyser("en"), {}
    ids = [[numbers.setdefault(t, len(numbers)) for t in analyser.terms(p)] for p in passages]
    theirs = import_bm25s().BM25(method="lucene", k1=1.5, b=0.75)
    theirs.index((ids, numbers), create_empty_token=False, show_progress=False)
    for query, query_scores in zip(queries, scores, strict=True):
        query_ids = [numbers[term] for term in analyser.terms(query) if term in numbers]
        expected = theirs.get_scores_from_ids(query_ids) if query_ids else np.zeros(300)
        np.testing.assert_array_equal(query_scores, expected)
    best_scores, best_rows = merge_top_k([index.search(weighted, 9) for index in indexes], 9)
    for query_scores, rows, row_scores in zip(scores, best_rows, best_scores, strict=True):
        order = np.lexsort((np.arange(300), -query_scores))
        expected = order[query_scores[order] > 0][:9]
        assert rows.tolist() == [*expected, *[-1] * (9 - len(expected))]
        np.testing.assert_array_equal(row_scores[: len(expected)], query_scores[expected])
    monkeypatch.undo()
    rows, _ = bm25(passages).search(queries, english[:50], 9)
    np.testing.assert_array_equal(rows, best_rows)


def test_texts_of_each_language_are_compared_by_its_own_words():
    passages = ["die Häuser am Fluss", "the houses by the river", "maisons et rivières"]
    index = Bm25(passages, ["de", "en", "fr"])
    rows, _ = index.search(["Haus", "house", "rivière"], ["de", "en", "fr"], 1)
    assert rows[:, 0].tolist() == [0, 1, 2]


def test_an_installed_jax_stays_off_the_gpu(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").touch()
    # Fails like the real module in a process that may see no GPU.
    (tmp_path / "jax" / "lax.py").write_text(
        "import os\n"
        "def top_k(values, k):\n"
        "    if os.environ.get('JAX_PLATFORMS') != 'cpu':\n"
        "        raise RuntimeError('no supported devices found for platform CUDA')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from stillroom.mining.bm25 import Bm25\n"
        "Bm25(['a word'], ['en']); print(sys.modules['jax'].__file__)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert str(tmp_path) in completed.stdout
