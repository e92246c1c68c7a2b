"""Linear layers that use all of a CPU.

torch gives float32 products to MKL, which on other makers' processors leaves AVX-512 unused: on an
AMD EPYC (Zen 5) it makes 105 GFLOP/s a core where oneDNN, which torch has within, makes 240.
"""

from typing import Any

import torch
from torch import Tensor

# Where there is no AVX-512, neither is ahead.
FASTER = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)


def use_onednn(module: torch.nn.Module) -> None:
    """From now on its linear layers are oneDNN's wherever that is faster. Weights and state stay
    as they are."""
    for layer in module.modules() if FASTER else ():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = CpuLinear


class CpuLinear(torch.nn.Linear):
    """torch's own, but for float32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        plain = (
            input.device.type != "cpu"
            or input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")  # it wants another precision
            or torch.compiler.is_compiling()  # or exporting: nobody else knows oneDNN's operator
        )
        if plain:
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _product(input, self.weight, self.bias)
        found: Tensor = _Product.apply(input, self.weight, self.bias)
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_input, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if of_weight else None, weight if of_input else None)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        gradient_no = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.T, None) if of_input else None,
            _product(gradient_no.T, input.contiguous().flatten(0, -2).T, None)
            if of_weight
            else None,
            gradient_no.sum(0) if of_bias else None,
        )


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found
