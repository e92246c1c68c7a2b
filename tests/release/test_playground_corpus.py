import numpy as np
import pytest
from sklearn.decomposition import PCA

from stillroom.release.playground_corpus import (
    EncoderView,
    ExampleQuery,
    PcaPlane,
    PlaygroundCorpus,
)


def test_a_plane_is_the_first_two_principal_components():
    vectors = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    vectors *= np.arange(12, 0, -1)
    plane, expected = PcaPlane.fit(vectors), PCA(2, svd_solver="full").fit(vectors)
    for axis, component in zip(plane.axes, expected.components_, strict=True):
        np.testing.assert_allclose(axis * np.sign(axis @ component), component, atol=1e-4)
    np.testing.assert_allclose(
        np.abs(plane.project(vectors)), np.abs(expected.transform(vectors)), atol=1e-3
    )


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1)])
def test_vectors_without_a_second_direction_lie_on_a_line(shape):
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float16)
    points = PcaPlane.fit(vectors).project(vectors)
    assert points.shape == (len(vectors), 2)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-3)


@pytest.mark.parametrize("mirrored", [1, -1])
def test_an_aligned_plane_puts_the_same_shape_on_top_of_the_other(mirrored):
    rng = np.random.default_rng(2)
    shape_n2 = rng.normal(size=(30, 2)) * [3, 1]
    rotation, _ = np.linalg.qr(rng.normal(size=(2, 2)))
    rotation[:, 0] *= mirrored
    vectors = np.hstack([shape_n2 @ rotation, np.zeros((30, 3))]).astype(np.float32)
    vectors -= vectors.mean(axis=0)
    target = shape_n2 - shape_n2.mean(axis=0)
    plane = PcaPlane.fit(vectors)
    aligned = plane.aligned_to(plane.project(vectors), target)
    np.testing.assert_allclose(aligned.project(vectors), target, atol=1e-4)


def test_a_corpus_is_read_as_it_was_written(tmp_path):
    vectors = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float16)
    view = EncoderView(vectors, PcaPlane.fit(vectors))
    encoders = {"teacher": view, "student": view}
    clusters = np.array([0, 1, 0], dtype=np.uint8)
    texts, examples = ["a", "é\n<b>", "c"], [ExampleQuery("q", [1])]
    PlaygroundCorpus(texts, 9, examples, clusters, encoders).write(tmp_path / "set")
    read = PlaygroundCorpus.read(tmp_path / "set")
    assert (read.texts, read.total, read.examples) == (texts, 9, examples)
    assert list(read.encoders) == ["teacher", "student"]
    np.testing.assert_array_equal(read.clusters, clusters)
    for name in encoders:
        np.testing.assert_array_equal(read.encoders[name].vectors, vectors)
        np.testing.assert_array_equal(read.encoders[name].plane.axes, view.plane.axes)
