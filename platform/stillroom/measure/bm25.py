"""The lexical baseline that every embedder must be held against."""

import bm25s
import numpy as np
import Stemmer

from stillroom.errors import UserError


def bm25(passages: list[str], queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lucene's BM25 (k1 1.5, b .75, English stop words, Snowball stemmer).

    Returns:
        Places of the best passages, int64 (q, k), best first and -1 where no word is shared,
        and their scores, float32.
    """
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )

    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    words = tokens(passages)
    if not any(words):
        raise UserError("passages", "hold no word that BM25 could index", "Set report.bm25=false")
    index.index(words, show_progress=False)
    places = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.zeros((len(queries), k), dtype=np.float32)
    depth = min(k, len(passages))
    for row, query in enumerate(tokens(queries)):
        if not query:
            continue
        all_scores = index.get_scores(query)
        best = np.argsort(-all_scores, kind="stable")[:depth]
        best = best[all_scores[best] > 0]
        places[row, : len(best)] = best
        scores[row, : len(best)] = all_scores[best]
    return places, scores
