"""Channel-wise scale and shift, and how it folds into the layer before it."""

from typing import Any

import torch
from torch import Tensor, nn

from pointpeft.backbones.layers import is_frozen, linear
from pointpeft.ops import frozen_linear, layer_norm_scale_shift, scale_shift
from pointpeft.ops.core.library import use_fused_reference


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
        self._kept: tuple[list[tuple[int, int]], tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]"""
        return scale_shift(x, self.gamma, self.beta)

    def train(self, mode: bool = True) -> "ScaleShift":
        """As `nn.Module.train`; training frees what `folded` keeps."""
        if mode:
            self._kept = None
        return super().train(mode)

    @torch.no_grad()
    def folded(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of `layer` with this transform after it; kept in evaluation until one of them changes."""
        sources = [t for t in (layer.weight, layer.bias, self.gamma, self.beta) if t is not None]
        keeps = not (self.training or torch.compiler.is_compiling() or any(t.is_inference() for t in sources))
        if not keeps:
            return _folded(layer, self)
        key = [(t.data_ptr(), t._version) for t in sources]
        if self._kept is None or self._kept[0] != key:
            # As frozen parameters, whose casts to a short type are kept as well.
            weight, bias = (nn.Parameter(t, requires_grad=False) for t in _folded(layer, self))
            self._kept = (key, (weight, bias))
        return self._kept[1]


@torch.no_grad()
def fold(layer: nn.Linear | nn.LayerNorm | nn.Conv1d, after: ScaleShift) -> Any:
    """Folds `after`, which reads the output of `layer`, into `layer`, giving it a bias where it has none.

    Returns:
        What stands in the place of `after` now: an identity.
    """
    weight, bias = _folded(layer, after)
    layer.weight, layer.bias = _frozen(weight), _frozen(bias)
    return nn.Identity()


def _folded(layer: nn.Linear | nn.LayerNorm | nn.Conv1d, after: ScaleShift) -> tuple[Tensor, Tensor]:
    gamma, beta = after.gamma, after.beta
    bias = beta if layer.bias is None else gamma * layer.bias + beta
    return gamma.view(-1, *[1] * (layer.weight.dim() - 1)) * layer.weight, bias


def folds(after: ScaleShift | nn.Identity, x: Tensor) -> bool:
    """Whether `after` needs no operation of its own: folded for good, or no gradient is asked for."""
    if isinstance(after, nn.Identity):
        return True
    wanted = torch.is_grad_enabled() and (x.requires_grad or after.gamma.requires_grad or after.beta.requires_grad)
    return not wanted and not use_fused_reference(x)


def terms(after: ScaleShift | nn.Identity) -> tuple[Tensor | None, Tensor | None]:
    """γ and β of `after`; None where it is folded for good."""
    return (None, None) if isinstance(after, nn.Identity) else (after.gamma, after.beta)


def mapped(layer: nn.Linear, after: ScaleShift | nn.Identity, x: Tensor) -> Tensor:
    """`after(layer(x))`, in one operation where no gradient is asked for."""
    if isinstance(after, nn.Identity):
        return linear(layer, x)
    if folds(after, x):
        return frozen_linear(x, *after.folded(layer))
    if is_frozen(layer):
        return frozen_linear(x, layer.weight, layer.bias, after.gamma, after.beta)
    return after(layer(x))


def normed(layer: nn.LayerNorm, after: ScaleShift | nn.Identity, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`after(layer(x))` in one operation, in `dtype` where it is given."""
    if isinstance(after, nn.Identity) and dtype in (None, x.dtype):
        return layer(x)
    return layer_norm_scale_shift(x, layer.weight, layer.bias, *terms(after), layer.eps, dtype=dtype)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
