"""A projection begins as near to the teacher as a linear map of the student's states can come."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from stillroom.encoders.files.create import create
from stillroom.learning.projection import fit_projection, least_squares
from support.tiny_models import _texts


@pytest.mark.parametrize("ridge", [1e-4, 0.3, 10.0])
def test_the_closed_form_is_the_least_of_what_it_minimises(ridge):
    torch.manual_seed(0)
    states = 3 * torch.randn(40, 8, dtype=torch.double)
    vectors = normalize(torch.randn(40, 5, dtype=torch.double), dim=1)
    weight = least_squares(states, vectors, ridge=ridge).double().requires_grad_()
    x = normalize(states, dim=1)
    penalty = ridge * x.square().sum(0).mean()
    loss = (x @ weight.T - vectors).square().sum() + penalty * weight.square().sum()
    [gradient] = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-5  # float32's rounding of the weights


def test_a_fitted_student_is_near_its_teacher_on_texts_that_it_was_not_fitted_to(encoder):
    student = create(
        str(encoder), space="s", pooling="mean", projection_dims=96, precision="float32"
    ).train()
    words = " ".join(_texts()).split()
    texts = [" ".join(words[i : i + 12]) for i in range(0, 6000, 12)]
    tokens = student.prompter(texts, "passage")
    # A teacher whose vectors are, but for noise, another linear map of the same states.
    torch.manual_seed(0)
    other = torch.nn.init.orthogonal_(torch.empty(96, 64))
    own = create(str(encoder), space="s", pooling="mean", precision="float32").encode
    noise = 0.2 * torch.randn(len(texts), 96) / 96**0.5
    teacher = normalize(torch.from_numpy(own(texts, "passage")) @ other.T + noise, dim=1).numpy()

    def cosine():
        return (student.encode(texts[400:], "passage") * teacher[400:]).sum(1).mean()

    before = cosine()
    fit_projection(student, tokens[:400], torch.from_numpy(teacher[:400]), batch_tokens=512)
    assert student.training
    assert before < 0.5 < 0.95 < cosine()
    assert np.isfinite(student.projection.weight.detach()).all()
