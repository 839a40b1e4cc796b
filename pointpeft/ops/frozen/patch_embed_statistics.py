"""What BatchNorm measures in the mini-PointNet tokenizer, without evaluating the layers it normalises."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library
from pointpeft.ops.frozen import frozen_linear as _frozen_linear  # noqa: F401  declares the operation
from pointpeft.ops.frozen.patch_embed import fold_batch_norm

ROWS_PER_CHUNK = 2048  # CPU: points whose intermediates are there at a time


class Moments(NamedTuple):
    """Means and biased variances over all points of the outputs of the first and of the third map.

    Attributes:
        mean1: [H1]
        var1: [H1]
        mean3: [H3]
        var3: [H3]
    """

    mean1: Tensor
    var1: Tensor
    mean3: Tensor
    var3: Tensor


def patch_embed_statistics(
    patches: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    eps1: float,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    moments1: tuple[Tensor, Tensor] | None = None,
) -> Moments:
    """Batch statistics of the tokenizer's two BatchNorms, for training with frozen weights; no gradient.

    The first follow from the mean and the covariance of the points. With h the normalised first layer's output after
    its ReLU and the third map's output A h + shift(patch) (see `patch_embed`), the last follow from the mean and the
    covariance of h, those of shift, and the means of h per patch: H1 x H1 products in the place of H3 x H1 ones.

    Args:
        patches: Points relative to their patch's centre. [B, G, S, 3]
        w1: First map, unfolded. [H1, 3]
        b1: [H1]
        gamma1: Of the first BatchNorm. [H1]
        beta1: [H1]
        eps1: Added to its variance.
        w2: [H2, H1]
        b2: [H2]
        w3: [H3, 2 * H2]
        b3: [H3]
        moments1: Mean and variance that the first BatchNorm uses; None for the batch's. [H1] each

    Returns:
        The moments, float32 (float64 for float64).

    Raises:
        ValueError: A wrong shape, dtype or device, or no points.

    Source: Ioffe & Szegedy, "Batch normalization", 2015, Algorithm 1.
    """
    checks.require_floating("patches", patches, 4, 3)
    if patches.numel() == 0:
        raise ValueError(f"patches must hold points, got shape {tuple(patches.shape)}")
    h1, h2, h3 = (checks.num_rows(weight) for weight in (w1, w2, w3))
    named = [("w1", w1, (h1, 3)), ("b1", b1, (h1,)), ("gamma1", gamma1, (h1,)), ("beta1", beta1, (h1,))]
    named += [("w2", w2, (h2, h1)), ("b2", b2, (h2,)), ("w3", w3, (h3, 2 * h2)), ("b3", b3, (h3,))]
    for name, tensor, shape in [*named, *(("moments1", t, (h1,)) for t in moments1 or ())]:
        checks.require_floating(name, tensor, len(shape))
        checks.require_shape(name, tensor, shape)
        if tensor.device != patches.device:
            raise ValueError(f"{name} is on {tensor.device}, but patches is on {patches.device}")
    checks.require_number("eps1", eps1, 0.0, "a finite number of at least 0")
    args = (patches, w1, b1, gamma1, beta1, eps1, w2, b2, w3, b3, moments1)
    derivatives.refuse_gradient("patch_embed_statistics", *args)
    if library.use_fused_reference(patches):
        return patch_embed_statistics_reference(*args)
    kind = torch.float64 if patches.dtype == torch.float64 else torch.float32
    with torch.no_grad(), torch.autocast(library.autocast_kind(patches), enabled=False):
        return _fused(*(t.to(kind) if isinstance(t, Tensor) else t for t in args))


def _fused(patches, w1, b1, gamma1, beta1, eps1, w2, b2, w3, b3, moments1):
    size = patches.shape[2]
    points = patches.reshape(-1, 3)
    count = points.shape[0]
    center = points.mean(0)
    spread = points - center
    mean1, var1 = torch.addmv(b1, w1, center), ((w1 @ (spread.t() @ spread / count)) * w1).sum(1)
    mean, var = (mean1, var1) if moments1 is None else moments1
    w1, b1 = fold_batch_norm(w1, b1, mean, var, gamma1, beta1, eps1)
    h2 = w2.shape[0]
    gram = w1.new_zeros(w1.shape[0], w1.shape[0], dtype=torch.float64)
    means, tops = [], []  # per patch: of h [n, H1], maximum of W2 h [n, H2]
    step = max(1, ROWS_PER_CHUNK // size) * size if patches.device.type == "cpu" else count
    for part in points.split(step):
        h = torch.addmm(b1, part, w1.t()).relu_()
        gram += h.t() @ h
        means.append(h.view(-1, size, h.shape[1]).mean(1))
        tops.append(torch.ops.pointpeft.frozen_linear(h, w2, None).view(-1, size, h2).amax(1))
    mean = torch.cat(means)
    shift = F.linear(torch.cat(tops), w3[:, :h2], F.linear(b2, w3[:, :h2] + w3[:, h2:], b3))  # [BG, H3]
    a = w3[:, h2:] @ w2
    center = mean.mean(0)
    covariance = (gram / count - torch.outer(center.double(), center.double())).to(w1.dtype)
    mean_shift = shift.mean(0)
    shift -= mean_shift
    together = 2 * F.linear(mean - center, a) + shift  # Var(Ah + s) = Var(Ah) + E[s (2 A (mean of h) + s)], centred
    var3 = ((a @ covariance) * a).sum(1) + (shift * together).mean(0)
    return Moments(mean1, var1, torch.addmv(mean_shift, a, center), var3.clamp_(min=0))


@torch.no_grad()
def patch_embed_statistics_reference(
    patches: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    eps1: float,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    moments1: tuple[Tensor, Tensor] | None = None,
) -> Moments:
    """The definition in plain PyTorch: evaluates the layers; arguments and result as in `patch_embed_statistics`."""
    size = patches.shape[2]
    kind = torch.float64 if patches.dtype == torch.float64 else torch.float32
    patches, w1, b1, gamma1, beta1, w2, b2, w3, b3 = (
        t.to(kind) for t in (patches, w1, b1, gamma1, beta1, w2, b2, w3, b3)
    )
    y = F.linear(patches.reshape(-1, 3), w1, b1)
    mean1, var1 = y.mean(0), y.var(0, correction=0)
    mean, var = (mean1, var1) if moments1 is None else moments1
    h = F.relu((y - mean) * torch.rsqrt(var + eps1) * gamma1 + beta1)
    f = F.linear(h, w2, b2)
    top = f.view(-1, size, f.shape[1]).amax(1).repeat_interleave(size, 0)
    y = F.linear(torch.cat([top, f], 1), w3, b3)
    return Moments(mean1, var1, y.mean(0), y.var(0, correction=0))
