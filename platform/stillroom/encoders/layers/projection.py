"""The layers between pooled states and the vector: linear maps, activations and layer norms.

Shapes: b texts, d dims, which each layer may change.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from stillroom.encoders.contract import ProjectionLayer

Tensor = torch.Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


class Projection(torch.nn.ModuleList):
    """Layers in their order. Computes in float32, whatever the weights' precision.

    Args:
        in_dims: of the pooled states.
        layers: as the contract lists them.
    """

    def __init__(self, in_dims: int, layers: Sequence[ProjectionLayer]):
        super().__init__()
        self.spec = tuple(layers)
        for layer in self.spec:
            if layer.kind == "dense":
                self.append(torch.nn.Linear(in_dims, layer.dims, bias=layer.bias))
            else:
                self.append(torch.nn.LayerNorm(layer.dims))
            in_dims = layer.dims

    @property
    def linear(self) -> torch.nn.Linear:
        """The linear map of a projection that has no other layer."""
        [layer] = self
        assert isinstance(layer, torch.nn.Linear)
        return layer

    @property
    def out_dims(self) -> int:
        """Dims of the vectors."""
        return self.spec[-1].dims

    def forward(self, vectors_bd: Tensor) -> Tensor:
        """Projects pooled states, float32 (b, in_dims) → (b, out_dims)."""
        for layer, module in zip(self.spec, self, strict=True):
            assert isinstance(module, torch.nn.Linear | torch.nn.LayerNorm)
            weight = module.weight.float()
            bias = None if module.bias is None else module.bias.float()
            if isinstance(module, torch.nn.LayerNorm):
                vectors_bd = F.layer_norm(vectors_bd, (layer.dims,), weight, bias, module.eps)
            else:
                vectors_bd = ACTIVATIONS[layer.activation](F.linear(vectors_bd, weight, bias))
        return vectors_bd


def linear_projection(in_dims: int, out_dims: int) -> Projection:
    """One linear map without a bias."""
    return Projection(in_dims, [ProjectionLayer(dims=out_dims)])
