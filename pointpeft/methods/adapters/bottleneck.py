"""The bottleneck that adapters are made of: down to a few channels, a non-linearity, and up again."""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Bottleneck(nn.Module):
    """W_up Dropout(φ(W_down x)); starts as zero, because W_up and the biases do.

    Args:
        width: C.
        rank: R, channels in between.
        activation: φ, a key of `ACTIVATIONS`.
        dropout: After φ.

    Source: Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019; initial values of AdaptFormer.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be among {', '.join(ACTIVATIONS)}, got {activation!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.activation = activation
        self.down = nn.Linear(width, rank, device=device, dtype=dtype)
        self.up = nn.Linear(rank, width, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        return self.up(self.dropout(ACTIVATIONS[self.activation](self.down(x))))
