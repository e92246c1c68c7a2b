"""MinHash and its bands against exact Jaccard similarities."""

import numpy as np
import pytest

from stillroom.data.cleaning import minhash as near_dedupe
from stillroom.data.cleaning.text_keys import (
    normalise,
)

VOCABULARY = [f"word{i}" for i in range(3000)]


def texts(rng, count, words):
    return [" ".join(rng.choice(VOCABULARY, size=words)) for _ in range(count)]


def edited(rng, text, edits):
    words = text.split()
    for place in rng.choice(len(words), size=edits, replace=False):
        words[place] = "edited"
    return " ".join(words)


def jaccard(one, other):
    """Of their three-word sequences; a text's end counts as words, too."""
    sets = []
    for text in (one, other):
        words = [*normalise(text).split(), "", ""]
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def found(given_texts, similarity):
    """All (later, earlier) pairs that the bands and sketches give."""
    signatures = near_dedupe.minhash_signatures(given_texts)
    bands = near_dedupe.band_keys(signatures, similarity)
    rows = np.arange(len(given_texts), dtype=np.uint64).repeat(bands.shape[1])
    sketches = near_dedupe.bit_sketches(signatures).repeat(bands.shape[1], axis=0)
    order = np.lexsort((rows, bands.reshape(-1)))
    later, earlier = near_dedupe.near_duplicates(
        bands.reshape(-1)[order], rows[order], sketches[order], similarity
    )
    return set(zip(later.tolist(), earlier.tolist(), strict=True))


def test_signatures_agree_as_often_as_texts_are_similar():
    rng = np.random.default_rng(0)
    for edits in (0, 2, 6, 15):
        one = texts(rng, 60, 80)
        other = [edited(rng, text, edits) for text in one]
        true = np.array([jaccard(*pair) for pair in zip(one, other, strict=True)])
        signatures = near_dedupe.minhash_signatures([*one, *other])
        agree = (signatures[:60] == signatures[60:]).mean(1)
        assert abs((agree - true).mean()) < 0.02 and (agree - true).std() < 0.06


def test_planted_near_copies_are_found_and_nothing_else():
    rng = np.random.default_rng(1)
    own = texts(rng, 1500, 100)
    copied = [edited(rng, text, 2) for text in own[:300]]  # a Jaccard similarity of about .89
    unlike = [edited(rng, text, 25) for text in own[300:600]]  # of about .3
    pairs = found([*own, *copied, *unlike], 0.8)
    planted = {(1500 + i, i) for i in range(300)}
    assert len(planted & pairs) / len(planted) >= 0.97
    assert len(pairs - planted) <= 0.01 * len(pairs)


def test_one_edit_in_a_text_without_spaces_is_a_near_copy_and_another_text_is_none():
    rng = np.random.default_rng(2)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]
    own = "".join(rng.choice(signs, size=120))
    assert found([own, own[:60] + "一" + own[61:], "".join(rng.choice(signs, size=120))], 0.8) == {
        (1, 0)
    }


def test_every_copy_in_a_crowd_is_paired_with_the_first():
    assert {(row, 0) for row in range(1, 50)} <= found(["the same few words again"] * 50, 0.8)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_narrow_enough_for_the_promised_recall(similarity):
    rows = near_dedupe.rows_per_band(similarity)
    missed = (1 - similarity**rows) ** (near_dedupe.PERMUTATIONS // rows)
    assert missed <= 1 - near_dedupe.MIN_RECALL
