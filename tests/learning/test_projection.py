"""The map that a student starts with: which is chosen, and that it holds for texts not seen."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.learning import projection
from stillroom.learning.linear_maps import Moments, procrustes
from stillroom.learning.projection import (
    candidate_maps,
    fit_projection,
    neighbour_agreement,
    solve_map,
)
from support.tiny_models import training_texts


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def topics(n, h):
    """States of n texts around four centres."""
    return 2 * torch.randn(4, h).repeat_interleave(n // 4, 0) + 0.5 * torch.randn(n, h)


def solve(states, vectors, **options):
    options = {"normalise": True, **options}
    return solve_map(states.__getitem__, vectors.__getitem__, len(states), **options)


def test_where_the_teacher_is_a_rotation_of_the_base_the_orthogonal_map_is_chosen():
    states = normalize(topics(400, 24), dim=1)
    rotation = torch.linalg.qr(torch.randn(40, 24))[0]
    vectors = normalize(states @ rotation.T + 0.02 * torch.randn(400, 40), dim=1)
    fit = solve(states, vectors)
    assert "procrustes" in fit.name
    assert fit.scores["procrustes"].mean > fit.scores["ridge 0.3"].mean
    assert fit.scores[fit.name].mean == max(score.mean for score in fit.scores.values())


def test_where_the_teacher_is_another_linear_map_of_the_base_a_ridge_is_chosen():
    states = normalize(topics(800, 16), dim=1)
    stretch = torch.randn(24, 16) * torch.logspace(-1.5, 1.5, 16)
    vectors = normalize(states @ stretch.T, dim=1)
    fit = solve(states, vectors)
    assert fit.name != "procrustes"
    assert fit.scores[fit.name].mean > fit.scores["procrustes"].mean + 0.1


@pytest.mark.parametrize(("choice", "expected"), [("procrustes", 1), ("ridge", 2), ("auto", 6)])
def test_a_recipe_can_name_the_map(choice, expected):
    states = normalize(topics(400, 16), dim=1)
    fit = solve(states, normalize(torch.randn(400, 24), dim=1), choice=choice)
    assert len(fit.scores) == expected
    assert fit.name in fit.scores
    if choice != "auto":
        assert all(name.startswith(choice) for name in fit.scores)


@pytest.mark.parametrize("n", [1, 3, 40])  # 40: more than dims, yet too few to hold any back
def test_few_texts_give_the_orthogonal_map_without_a_choice(n):
    states, vectors = torch.randn(n, 16), normalize(torch.randn(n, 24), dim=1)
    fit = solve(states, vectors)
    assert (fit.name, fit.scores, fit.texts) == ("procrustes", {}, n)
    gram = fit.weight_dh.T @ fit.weight_dh
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(16), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [1, 5])
def test_states_and_vectors_without_full_rank_give_finite_maps(rank):
    states = topics(400, rank) @ torch.randn(rank, 16)
    vectors = normalize(states @ torch.randn(16, 8), dim=1)
    fit = solve(states, vectors)
    assert fit.weight_dh.shape == (8, 16)
    assert torch.isfinite(fit.weight_dh).all()


def test_the_texts_are_read_in_parts_and_the_parts_change_nothing(monkeypatch):
    states = normalize(topics(400, 16), dim=1)
    vectors = normalize(states @ torch.randn(16, 24), dim=1)
    whole = solve(states, vectors)
    sizes = []

    def rows(numbers):
        sizes.append(len(numbers))
        return states[numbers]

    monkeypatch.setattr(projection, "CHUNK", 50)
    # The topics come from a sample as large as a part.
    monkeypatch.setattr(
        projection, "_topic_centres", lambda *_, centres=vectors[[0, 100, 200, 300]]: centres
    )
    parts = solve_map(rows, vectors.__getitem__, 400, normalise=True, choice="procrustes")
    assert sizes == [50] * 8
    expected = dict(candidate_maps(Moments.of(states, vectors)))["procrustes"].float()
    torch.testing.assert_close(parts.weight_dh, expected, atol=1e-6, rtol=1e-5)
    assert whole.texts == parts.texts == 400


def test_where_dot_compares_the_lengths_are_fitted():
    states = topics(400, 16)
    vectors = 7 * states @ torch.linalg.qr(torch.randn(24, 16))[0].T
    fit = solve(states, vectors, normalise=False)
    torch.testing.assert_close(states @ fit.weight_dh.T, vectors, atol=0.05, rtol=0.05)
    assert fit.relative_error < 1e-3
    weight = procrustes(Moments.of(states, vectors)).float()
    torch.testing.assert_close(states @ weight.T, vectors, atol=1e-3, rtol=1e-3)


def test_agreement_is_the_share_of_the_teacher_s_nearest_neighbours():
    vectors = normalize(torch.randn(60, 8), dim=1)
    same = neighbour_agreement(vectors, vectors)
    assert (same.symmetric, same.asymmetric) == (1.0, 1.0)
    # Turned away from the teacher's, its own neighbours stay, and it finds none of the teacher's.
    turned = neighbour_agreement(-vectors, vectors)
    assert turned.symmetric == 1.0
    assert turned.asymmetric < 0.1
    mapped = normalize(torch.randn(60, 8), dim=1)
    expected = []
    for i in range(60):
        others = [j for j in range(60) if j != i]
        by_teacher = sorted(others, key=lambda j: -float(vectors[i] @ vectors[j]))[:10]
        by_student = sorted(others, key=lambda j: -float(mapped[i] @ vectors[j]))[:10]
        expected.append(len({*by_teacher} & {*by_student}) / 10)
    assert neighbour_agreement(mapped, vectors).asymmetric == pytest.approx(np.mean(expected))


def student_of(folder, **options):
    return create_encoder(
        str(folder),
        space="s",
        options=ContractOptions(pooling="mean", precision="float32", **options),
        projection_dims=96,
    )


def fit_and_set(student, tokens, vectors):
    fit = fit_projection(student, tokens, vectors.__getitem__, batch_tokens=512)
    student.projection.linear.weight.data.copy_(fit.weight_dh)


def test_a_fitted_projection_generalises_to_other_texts(encoder):
    student = student_of(encoder).train()
    words = " ".join(training_texts()).split()
    texts = [" ".join(words[i : i + 12]) for i in range(0, 6000, 12)]
    tokens = student.prompter(texts, "passage")
    # The teacher's vectors are another linear map of the same states, plus noise.
    torch.manual_seed(0)
    teacher_map = torch.nn.init.orthogonal_(torch.empty(96, 64))
    encode_base = create_encoder(
        str(encoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    ).encode
    noise = 0.2 * torch.randn(len(texts), 96) / 96**0.5
    teacher = normalize(
        torch.from_numpy(encode_base(texts, "passage")) @ teacher_map.T + noise, dim=1
    ).numpy()

    def cosine():
        return (student.encode(texts[400:], "passage") * teacher[400:]).sum(1).mean()

    before = cosine()
    fit_and_set(student, tokens[:400], torch.from_numpy(teacher[:400]))
    assert student.training
    assert before < 0.5 < 0.95 < cosine()
    assert np.isfinite(student.projection.linear.weight.detach()).all()


def test_a_projection_of_a_student_that_dot_compares_fits_the_lengths_too(encoder):
    student = student_of(encoder, similarity="dot").eval()
    words = " ".join(training_texts()).split()
    texts = [" ".join(words[i : i + 3 + i % 9]) for i in range(0, 6000, 12)]
    states = student.encode(texts, "passage") @ student.projection.linear.weight.detach().numpy()
    teacher_map = 3 * np.random.default_rng(0).normal(size=(64, 96))
    # Far from the mean that all states share, so that lengths differ.
    teacher = (20 * (states - states[:1]) @ teacher_map).astype(np.float32)

    def error():
        rows = student.encode(texts[400:], "passage") - teacher[400:]
        return np.linalg.norm(rows) / np.linalg.norm(teacher[400:])

    tokens = student.prompter(texts, "passage")
    before = error()
    fit_and_set(student, tokens[:400], torch.from_numpy(teacher[:400]))
    lengths = np.linalg.norm(student.encode(texts[400:], "passage"), axis=1)
    correlation = np.corrcoef(lengths, np.linalg.norm(teacher[400:], axis=1))[0, 1]
    assert before > 0.9 > 0.7 > error()
    assert correlation > 0.8
