"""The frozen second half of the tokenizer behind a first half that trains: of its wide layers nothing is kept."""

from typing import Any

import torch
from torch import Tensor

from pointpeft.ops import frozen_linear
from pointpeft.ops.core import derivatives

_ATEN = torch.ops.aten


class _FrozenEnd(torch.autograd.Function):
    """Keeps its input, where the two maxima are, and BatchNorm's statistics; the layer of 4H is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        w3, b3, w4, b4, gain, bias, used_mean, used_var, training, eps = options
        top, at_top = x.view(-1, size, x.shape[1]).max(1)
        wide = _wide(x, top, size, w3, b3)
        used = (None, None) if training else (used_mean, used_var)
        y, mean, rstd = _ATEN.native_batch_norm.default(wide, gain, bias, *used, training, 0.0, eps)
        if not training:
            mean, rstd = used_mean.clone(), (used_var + eps).rsqrt()
        y = frozen_linear(y.relu_(), w4, b4).view(-1, size, w4.shape[0])
        tokens, at_token = y.max(1)
        small = torch.uint8 if size <= 256 else torch.int32
        ctx.save_for_backward(x, at_top.to(small), at_token.to(small), mean, rstd, w3, b3, w4, gain, bias)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.training, ctx.eps = training, eps
        return tokens, mean, rstd

    @staticmethod
    @derivatives.once_differentiable("pointpeft.backbones.frozen_end")
    def backward(ctx: Any, grad: Tensor, _mean: Tensor, _rstd: Tensor) -> tuple[Tensor | None, ...]:
        x, at_top, at_token, mean, rstd, w3, b3, w4, gain, bias = ctx.saved_tensors
        groups, channels = at_token.shape
        at_top, at_token = at_top.to(torch.int64)[:, None], at_token.to(torch.int64)[:, None]
        points = x.view(groups, -1, x.shape[1])
        size = points.shape[1]
        wide = _wide(x, points.gather(1, at_top)[:, 0], size, w3, b3)
        dy = grad.new_zeros(groups, size, channels).scatter_(1, at_token, grad[:, None])
        dy = frozen_linear(dy.view(-1, channels), w4.t())
        scale = gain * rstd
        passed = torch.addcmul(bias - mean * scale, wide, scale)
        dy = _ATEN.threshold_backward.default(dy, passed.to(dy.dtype), 0)
        d_wide = _ATEN.native_batch_norm_backward.default(
            dy, wide, gain, mean, rstd**-2 - ctx.eps, mean, rstd, ctx.training, ctx.eps, [True, False, False]
        )[0]
        half = x.shape[1]
        dx = frozen_linear(d_wide, w3[:, half:].t())
        d_top = frozen_linear(d_wide.view(groups, size, -1).sum(1), w3[:, :half].t())
        dx_at_points = dx.view_as(points)
        dx_at_points.scatter_(1, at_top, dx_at_points.gather(1, at_top) + d_top[:, None])
        return dx, *[None] * 11


def _wide(x: Tensor, top: Tensor, size: int, w3: Tensor, b3: Tensor) -> Tensor:
    """The layer of 4H before BatchNorm: its map of [top, x], that of the maximum once a patch."""
    half = x.shape[1]
    wide = frozen_linear(x, w3[:, half:])
    wide.view(-1, size, wide.shape[1]).add_(frozen_linear(top, w3[:, :half], b3)[:, None])
    return wide


def frozen_end(
    x: Tensor,
    size: int,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    b4: Tensor,
    gain: Tensor,
    bias: Tensor,
    used_mean: Tensor,
    used_var: Tensor,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens max(W4 ReLU(BN(W3 [max x, x] + b3)) + b4), maxima over the points of a patch; differentiable in x alone.

    Args:
        x: What the first half gives for each point. [BGS, 2H]
        size: S, points of a patch.
        w3: [4H, 4H]
        b3: [4H]
        w4: [C, 4H]
        b4: [C]
        gain: BatchNorm's weight. [4H]
        bias: BatchNorm's bias. [4H]
        used_mean: Its running mean, used where it does not train. [4H]
        used_var: Its running variance, likewise. [4H]
        training: Whether BatchNorm measures the batch.
        eps: Added to the variance.

    Returns:
        Tokens [BG, C]; the mean and 1 / deviation that BatchNorm used [4H].
    """
    return _FrozenEnd.apply(x, size, w3, b3, w4, b4, gain, bias, used_mean, used_var, training, eps)
