import numpy as np
import pytest
from sklearn.decomposition import PCA

from stillroom.release.playground_corpus import Example, Plane, Showcase, Shown


def test_a_plane_is_the_first_two_principal_components():
    vectors = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    vectors *= np.arange(12, 0, -1)
    found, slow = Plane.of(vectors), PCA(2, svd_solver="full").fit(vectors)
    for own, theirs in zip(found.axes, slow.components_, strict=True):
        np.testing.assert_allclose(own * np.sign(own @ theirs), theirs, atol=1e-4)
    np.testing.assert_allclose(
        np.abs(found.place(vectors)), np.abs(slow.transform(vectors)), atol=1e-3
    )


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1)])
def test_what_has_no_second_direction_lies_on_a_line(shape):
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float16)
    placed = Plane.of(vectors).place(vectors)
    assert placed.shape == (len(vectors), 2)
    np.testing.assert_allclose(placed[:, 1], 0, atol=1e-3)


@pytest.mark.parametrize("mirrored", [1, -1])
def test_a_turned_plane_lays_the_same_shape_over_the_other(mirrored):
    rng = np.random.default_rng(2)
    plane_n2 = rng.normal(size=(30, 2)) * [3, 1]
    turn, _ = np.linalg.qr(rng.normal(size=(2, 2)))
    turn[:, 0] *= mirrored
    vectors = np.hstack([plane_n2 @ turn, np.zeros((30, 3))]).astype(np.float32)
    vectors -= vectors.mean(axis=0)
    towards = plane_n2 - plane_n2.mean(axis=0)
    own = Plane.of(vectors)
    turned = own.turned(own.place(vectors), towards)
    np.testing.assert_allclose(turned.place(vectors), towards, atol=1e-4)


def test_what_is_written_is_read(tmp_path):
    vectors = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float16)
    shown = Shown(vectors, Plane.of(vectors))
    encoders = {"teacher": shown, "student": shown}
    clusters = np.array([0, 1, 0], dtype=np.uint8)
    one = Showcase(["a", "é\n<b>", "c"], 9, [Example("q", [1])], clusters, encoders)
    one.write(tmp_path / "set")
    other = Showcase.read(tmp_path / "set")
    assert (other.texts, other.total, other.examples) == (one.texts, 9, one.examples)
    assert list(other.encoders) == ["teacher", "student"]
    np.testing.assert_array_equal(other.clusters, clusters)
    for name in encoders:
        np.testing.assert_array_equal(other.encoders[name].vectors, vectors)
        np.testing.assert_array_equal(other.encoders[name].plane.axes, shown.plane.axes)
