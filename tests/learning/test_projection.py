"""A fitted projection is the best linear map from the student's states to the teacher's vectors."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.learning.projection import fit_projection, ridge_regression
from support.tiny_models import training_texts


@pytest.mark.parametrize("ridge", [1e-4, 0.3, 10.0])
def test_ridge_regression_finds_the_minimum(ridge):
    torch.manual_seed(0)
    states = 3 * torch.randn(40, 8, dtype=torch.double)
    vectors = torch.randn(40, 5, dtype=torch.double)
    weight = ridge_regression(states, vectors, ridge=ridge).double().requires_grad_()
    penalty = ridge * states.square().sum(0).mean()
    loss = (states @ weight.T - vectors).square().sum() + penalty * weight.square().sum()
    [gradient] = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-4  # float32's rounding of the weights


def test_a_fitted_projection_generalises_to_other_texts(encoder):
    student = create_encoder(
        str(encoder),
        space="s",
        options=ContractOptions(pooling="mean", precision="float32"),
        projection_dims=96,
    ).train()
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
    fit_projection(student, tokens[:400], torch.from_numpy(teacher[:400]), batch_tokens=512)
    assert student.training
    assert before < 0.5 < 0.95 < cosine()
    assert np.isfinite(student.projection.linear.weight.detach()).all()


def test_a_projection_of_a_student_that_dot_compares_fits_the_lengths_too(encoder):
    student = create_encoder(
        str(encoder),
        space="s",
        options=ContractOptions(pooling="mean", precision="float32", similarity="dot"),
        projection_dims=96,
    ).eval()
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
    fit_projection(student, tokens[:400], torch.from_numpy(teacher[:400]))
    lengths = np.linalg.norm(student.encode(texts[400:], "passage"), axis=1)
    correlation = np.corrcoef(lengths, np.linalg.norm(teacher[400:], axis=1))[0, 1]
    assert before > 0.9 > 0.7 > error()
    assert correlation > 0.8
