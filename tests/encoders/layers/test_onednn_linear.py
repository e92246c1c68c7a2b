"""oneDNN's linear layers equal torch's, forward and backward."""

import pytest
import torch

from stillroom.encoders.layers import onednn_linear
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.layers.onednn_linear import OneDnnLinear, use_onednn
from support.make_encoder import make_encoder


def layers(bias=True):
    """torch's layer, and oneDNN's with the same weights."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    fast = torch.nn.Linear(24, 40, bias=bias)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = OneDnnLinear
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
    "of all alike": lambda values: values.sum(),
    "of a part": lambda values: values[..., 5:9].square().sum(),
    "through a transposition": lambda values: (values.transpose(0, 1) * 2).tanh().sum(),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("loss", GRADIENTS)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_torch_s(name, loss, bias):
    results = []
    for layer in layers(bias):
        inputs = INPUTS[name]().requires_grad_()
        values = layer(inputs)
        GRADIENTS[loss](values).backward()
        results.append([values, inputs.grad, *(tensor.grad for tensor in layer.parameters())])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs), values, rtol=0, atol=0)


def test_frozen_weights_get_no_gradient_and_save_no_input():
    _, fast = layers()
    fast.requires_grad_(False)
    saved = []
    inputs = rows(7, 24).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda x: x
    ):
        fast(inputs).sum().backward()
    assert [tensor.shape for tensor in saved] == [fast.weight.shape]
    assert fast.weight.grad is None and inputs.grad is not None


def test_autocast_and_other_precisions_give_torch_s_results():
    plain, fast = layers()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(rows(7, 24)), plain(rows(7, 24)), rtol=0, atol=0)
        assert fast(rows(7, 24)).dtype == torch.bfloat16
    assert fast.double()(rows(7, 24).double()).dtype == torch.float64


@pytest.mark.parametrize("faster", [True, False])
def test_an_encoder_s_layers_are_onednn_s_where_that_is_faster(decoder, monkeypatch, faster):
    monkeypatch.setattr(onednn_linear, "ONEDNN_IS_FASTER", faster)
    lora = LoraOptions(rank=4, alpha=8)
    model = make_encoder(decoder, attention="bidirectional", precision="float32", lora=lora)
    kinds = {type(tensor) for tensor in model.modules() if isinstance(tensor, torch.nn.Linear)}
    assert kinds == {OneDnnLinear if faster else torch.nn.Linear}


def test_a_module_keeps_its_weights_and_their_names():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    use_onednn(module)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_of_all_kernels_those_used_last_are_kept(capfd):
    weight = torch.randn(3, 7)  # of a shape that nothing else in the tests has

    def compiled(*row_counts):
        """How many of these calls compiled a kernel."""
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
            for rows in row_counts:
                onednn_linear._onednn_linear(torch.randn(rows, 7), weight, None)
        return capfd.readouterr().out.count("create:cache_miss")

    assert compiled(1, 2, 1) == 2
    many = range(3, 3 + onednn_linear.KERNELS)
    assert compiled(*many) == len(many)
    assert compiled(many[-1]) == 0
    assert compiled(1) == 1


def test_of_all_numbers_of_rows_kernels_are_kept_for_few(monkeypatch):
    plain, fast = layers()
    run, seen = onednn_linear._onednn_linear, set()

    def record(inputs, weight, bias):
        seen.add(tuple(inputs.shape))
        return run(inputs, weight, bias)

    monkeypatch.setattr(onednn_linear, "_onednn_linear", record)
    with torch.inference_mode():
        for texts in (1, 2, 3):
            for tokens in range(1, 1024 // texts + 1):
                inputs = rows(texts, tokens, 24)
                values = fast(inputs)
                assert values.shape == (texts, tokens, 40)
        torch.testing.assert_close(values, plain(inputs), rtol=1e-5, atol=1e-5)
    numbers = {shape[0] * (shape[1] if len(shape) == 3 else 1) for shape in seen}
    assert max(numbers) == 1024 and len(numbers) <= 64 + 4 * 32
