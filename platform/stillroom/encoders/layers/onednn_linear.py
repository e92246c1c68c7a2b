"""Linear layers that use oneDNN on CPUs where it is faster than torch's default, MKL.

MKL does not use AVX-512 on processors that are not Intel's: on an AMD EPYC (Zen 5) it
reaches 105 GFLOP/s a core in float32, and oneDNN, which comes with torch, 240.
"""

import os
from typing import Any

import torch
from torch import Tensor

# How many kernels oneDNN keeps in a process, those used last: two for each layer's shape, number of
# rows and number of threads, which take about .5 MiB and .7 ms to compile. With oneDNN's own 1,024
# a server's memory grows for thousands of requests. It is read at the first kernel.
KERNELS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 256
os.environ.setdefault(KERNELS_VARIABLE, str(KERNELS))

# Without AVX-512 both are equally fast.
ONEDNN_IS_FASTER = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)


def use_onednn(module: torch.nn.Module) -> None:
    """Makes the module's linear layers use oneDNN where it is faster; weights stay the same."""
    for layer in module.modules() if ONEDNN_IS_FASTER else ():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = OneDnnLinear


class OneDnnLinear(torch.nn.Linear):
    """torch's linear layer, with oneDNN for float32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        use_default = (
            input.device.type != "cpu"
            or input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")  # another precision is requested
            or torch.compiler.is_compiling()  # or exporting: no other runtime has oneDNN's operator
        )
        if use_default:
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _onednn_linear_inference(input, self.weight, self.bias)
        output: Tensor = _OneDnnLinearFunction.apply(input, self.weight, self.bias)
        return output


class _OneDnnLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_input, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        return _onednn_linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        gradient_no = gradient.flatten(0, -2)
        return (
            _onednn_linear(gradient, weight.T, None) if needs_input else None,
            _onednn_linear(gradient_no.T, input.contiguous().flatten(0, -2).T, None)
            if needs_weight
            else None,
            gradient_no.sum(0) if needs_bias else None,
        )


def spare_rows(rows: int) -> int:
    """Number of rows to add so that only 32 numbers of rows occur between any one and its double.

    oneDNN keeps a compiled kernel for each number that it has met, in each thread: for all of them,
    more than a GiB.
    """
    return -rows % (1 << max(0, rows.bit_length() - 6))


def _onednn_linear_inference(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = input.shape[:-1].numel()
    spare = spare_rows(rows)
    if not spare:
        return _onednn_linear(input, weight, bias)
    padded = torch.nn.functional.pad(input.flatten(0, -2), (0, 0, 0, spare))
    return _onednn_linear(padded, weight, bias)[:rows].view(*input.shape[:-1], len(weight))


def _onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return output
