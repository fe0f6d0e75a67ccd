"""Linear layers whose float32 products on a CPU are oneDNN's where nothing is trained.

torch multiplies float32 matrices on a CPU with MKL, which leaves a fifth to a quarter of an AMD processor's rate
unused. oneDNN, which torch carries for convolutions and compiled models, does not, and applies a GELU in the same pass
(``benchmarks/results/cogact_head.json``). The numbers differ by rounding alone.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gelu = Literal["none", "tanh"]
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class InferenceLinear(nn.Linear):
    """``nn.Linear``, faster without gradients in float32 on a CPU; the same everywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self._product(x, "none", "") if self._faster(x) else super().forward(x)

    def fuses(self, x: Tensor) -> bool:
        """Whether ``gelu_of`` may pass by the call of this layer: nobody waits for that call, as ZeRO-3 does, which
        gathers the weight in a hook and leaves it empty meanwhile."""
        return not (self._forward_pre_hooks or self._forward_hooks) and self._faster(x)

    def _product(self, x: Tensor, after: str, how: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], how)

    def _faster(self, x: Tensor) -> bool:
        """Whether this is about real float32 numbers of a CPU: no shards, no weights that a shard left empty, no
        stand-ins of a trace or a compiler."""
        return (
            _AVAILABLE
            and not torch.is_grad_enabled()
            and type(x) is Tensor
            and self.weight.shape == (self.out_features, self.in_features)
            and type(self.weight) in (Tensor, nn.Parameter)
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


def gelu_of(layer: nn.Module, x: Tensor, approximate: Gelu) -> Tensor:
    """GELU of what a linear layer gives, in one pass where it can be; the layer may be wrapped, as adapters do."""
    if isinstance(layer, InferenceLinear) and layer.fuses(x):
        return layer._product(x, "gelu", approximate)
    return F.gelu(layer(x), approximate=approximate)
