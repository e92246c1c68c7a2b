"""MinHash and its bands, compared with exact Jaccard similarities."""

import numpy as np
import pytest

from stillroom.data.cleaning import minhash
from stillroom.data.cleaning.text_keys import normalise

VOCABULARY = [f"word{i}" for i in range(3000)]


def texts(rng, count, words):
    return [" ".join(rng.choice(VOCABULARY, size=words)) for _ in range(count)]


def edited(rng, text, edits):
    words = text.split()
    for position in rng.choice(len(words), size=edits, replace=False):
        words[position] = "edited"
    return " ".join(words)


def jaccard(first, second):
    """Exact Jaccard similarity of the three-word sequences; the end of a text counts as words."""
    sets = []
    for text in (first, second):
        words = [*normalise(text).split(), "", ""]
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def duplicate_pairs(texts_to_compare, similarity):
    """All (later, earlier) pairs that bands and sketches find."""
    signatures = minhash.minhash_signatures(texts_to_compare)
    bands = minhash.band_keys(signatures, similarity)
    rows = np.arange(len(texts_to_compare), dtype=np.uint64).repeat(bands.shape[1])
    sketches = minhash.bit_sketches(signatures).repeat(bands.shape[1], axis=0)
    order = np.lexsort((rows, bands.reshape(-1)))
    later, earlier = minhash.near_duplicates(
        bands.reshape(-1)[order], rows[order], sketches[order], similarity
    )
    return set(zip(later.tolist(), earlier.tolist(), strict=True))


def test_signatures_agree_as_often_as_texts_are_similar():
    rng = np.random.default_rng(0)
    for edits in (0, 2, 6, 15):
        originals = texts(rng, 60, 80)
        edited_texts = [edited(rng, text, edits) for text in originals]
        similarity = np.array(
            [jaccard(*pair) for pair in zip(originals, edited_texts, strict=True)]
        )
        signatures = minhash.minhash_signatures([*originals, *edited_texts])
        agreement = (signatures[:60] == signatures[60:]).mean(1)
        assert abs((agreement - similarity).mean()) < 0.02 and (agreement - similarity).std() < 0.06


def test_planted_near_copies_are_found_and_nothing_else():
    rng = np.random.default_rng(1)
    originals = texts(rng, 1500, 100)
    # Jaccard similarities of about 0.89 and 0.3.
    near_copies = [edited(rng, text, 2) for text in originals[:300]]
    unlike = [edited(rng, text, 25) for text in originals[300:600]]
    pairs = duplicate_pairs([*originals, *near_copies, *unlike], 0.8)
    planted = {(1500 + i, i) for i in range(300)}
    assert len(planted & pairs) / len(planted) >= 0.97
    assert len(pairs - planted) <= 0.01 * len(pairs)


def test_one_edit_in_a_text_without_spaces_is_a_near_copy_and_another_text_is_none():
    rng = np.random.default_rng(2)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]
    original = "".join(rng.choice(signs, size=120))
    assert duplicate_pairs(
        [original, original[:60] + "一" + original[61:], "".join(rng.choice(signs, size=120))], 0.8
    ) == {(1, 0)}


def test_every_copy_in_a_crowd_is_paired_with_the_first():
    assert {(row, 0) for row in range(1, 50)} <= duplicate_pairs(
        ["the same few words again"] * 50, 0.8
    )


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_narrow_enough_for_the_promised_recall(similarity):
    rows = minhash.rows_per_band(similarity)
    missed = (1 - similarity**rows) ** (minhash.PERMUTATIONS // rows)
    assert missed <= 1 - minhash.MIN_RECALL
