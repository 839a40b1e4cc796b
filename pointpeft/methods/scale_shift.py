"""Channel-wise scale and shift, and how it folds into the layer before it."""

from typing import Any

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """y = γ ⊙ x + β per channel, γ ~ N(1, 0.02), β ~ N(0, 0.02).

    Source: Lian et al., "Scaling & shifting your features" (SSF), NeurIPS 2022, Eq. 2.
    """

    def __init__(self, width: int, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        nn.init.normal_(self.gamma, 1.0, 0.02)
        nn.init.normal_(self.beta, 0.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        return self.gamma * x + self.beta


@torch.no_grad()
def fold(layer: nn.Linear | nn.LayerNorm | nn.Conv1d, after: ScaleShift) -> nn.Identity:
    """Folds `after`, which reads the output of `layer`, into `layer`, giving it a bias where it has none.

    Returns:
        What stands in the place of `after` now.
    """
    gamma, beta = after.gamma, after.beta
    bias = beta if layer.bias is None else gamma * layer.bias + beta
    layer.weight = _frozen(gamma.view(-1, *[1] * (layer.weight.dim() - 1)) * layer.weight)
    layer.bias = _frozen(bias)
    return nn.Identity()


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
