"""oneDNN's linear layers give what torch's own do, forwards and backwards."""

import pytest
import torch

from stillroom.encoders.files.create import create
from stillroom.encoders.layers import onednn_linear as cpu_linear
from stillroom.encoders.layers.onednn_linear import CpuLinear, use_onednn


def layers(bias=True):
    """torch's own, and oneDNN's with the same weights."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    fast = torch.nn.Linear(24, 40, bias=bias)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = CpuLinear
    return plain, fast


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


INPUTS = {
    "two dims": lambda: rows(7, 24),
    "three dims": lambda: rows(2, 5, 24),
    "one row": lambda: rows(1, 1, 24),
    "a part of wider rows": lambda: rows(6, 30)[:, 3:27],
    "columns": lambda: rows(24, 9).T,
    "one row again and again": lambda: rows(1, 24).expand(8, 24),
}
GRADIENTS = {
    "of all alike": lambda found: found.sum(),
    "of a part": lambda found: found[..., 5:9].square().sum(),
    "through a transposition": lambda found: (found.transpose(0, 1) * 2).tanh().sum(),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("loss", GRADIENTS)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torch_s(name, loss, bias):
    found = []
    for layer in layers(bias):
        given = INPUTS[name]().requires_grad_()
        values = layer(given)
        GRADIENTS[loss](values).backward()
        found.append([values, given.grad, *(one.grad for one in layer.parameters())])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(given), values, rtol=0, atol=0)


def test_what_is_frozen_gets_no_gradient_and_keeps_no_input():
    _, fast = layers()
    fast.requires_grad_(False)
    kept = []
    given = rows(7, 24).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        fast(given).sum().backward()
    assert [one.shape for one in kept] == [fast.weight.shape]
    assert fast.weight.grad is None and given.grad is not None


def test_autocast_and_other_precisions_are_torch_s():
    plain, fast = layers()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(rows(7, 24)), plain(rows(7, 24)), rtol=0, atol=0)
        assert fast(rows(7, 24)).dtype == torch.bfloat16
    assert fast.double()(rows(7, 24).double()).dtype == torch.float64


@pytest.mark.parametrize("faster", [True, False])
def test_an_encoder_s_layers_are_onednn_s_where_that_is_faster(decoder, monkeypatch, faster):
    monkeypatch.setattr(cpu_linear, "FASTER", faster)
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
    model = create(
        str(decoder), space="s", attention="bidirectional", pooling="mean", precision="float32",
        lora=lora,
    )  # fmt: skip
    kinds = {type(one) for one in model.modules() if isinstance(one, torch.nn.Linear)}
    assert kinds == {CpuLinear if faster else torch.nn.Linear}


def test_a_module_keeps_its_weights_and_the_names_of_them():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    before = {name: one.clone() for name, one in module.state_dict().items()}
    use_onednn(module)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
