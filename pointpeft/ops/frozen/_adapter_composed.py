"""The bottleneck adapters in PyTorch's operations: for ranks that the Triton kernels cannot hold, and in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import derivatives, dropout


def forward(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
    """As `_adapter_triton.launch`."""
    u = x if nw is None else F.layer_norm(x, x.shape[-1:], nw, nb, eps)
    z = F.linear(u, dw, db)
    h = F.relu(z) if relu else F.gelu(z)
    if seed is not None:
        h = h * dropout.mask(seed, h.numel(), dropout_p).view(h.shape) / (1 - dropout_p)
    a = F.linear(h, uw, ub)
    a = multiplier * a if gw is None else multiplier * F.relu(F.linear(u, gw, gb)) * a
    return a, F.gelu(a).mean(1) if with_prompt else x.new_empty(0)


def backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu):
    """As `_adapter_triton.launch_backward`: computes the forward pass again."""
    tensors = (x, nw, nb, gw, gb, dw, db, uw, ub)
    with derivatives.recording(), torch.enable_grad():
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in tensors]
        args = [*leaves, seed, eps, multiplier, dropout_p, relu, grad_prompt is not None]
        a, prompt = forward(*args)
        outputs, grads = ([a], [grad]) if grad_prompt is None else ([a, prompt], [grad, grad_prompt])
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, given, grads))
    return tuple(x.new_empty(0) if t is None else next(found).contiguous() for t in tensors)


def weight_gradients(
    grad: Tensor, grad_prompt: Tensor | None, x: Tensor, weights: Any, hs: Tensor, dz: Tensor, facts: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the weights from what the backward kernel leaves, as products of matrices.

    Args:
        grad: [B, T, C]
        grad_prompt: [B, C]
        x: [B, T, C]
        weights: As the operation takes them, None where missing.
        hs: s ⊙ h. [BT, R]
        dz: Gradient of z. [BT, R]
        facts: Mean, 1 / deviation, s and gradient of the gate before its ReLU of each token, float32. [BT, 4]
    """
    nw, nb, gw, _, dw, _, uw, ub = weights
    batch, t, c = x.shape
    x, g = x.reshape(-1, c), grad.reshape(-1, c)
    mean, rstd, s, dgate = facts.to(x.dtype).t().unsqueeze(-1).unbind()  # [BT, 1] each
    if grad_prompt is not None:
        a = torch.addmm(s * ub, hs, uw.t()).view(batch, t, c)
        g = (grad + torch.ops.aten.gelu_backward((grad_prompt / t)[:, None].expand_as(a), a)).view(-1, c)
    normal = x if nw is None else (x - mean) * rstd
    u = normal if nw is None else torch.addcmul(nb, normal, nw)
    d_nw, d_nb, d_gw, d_gb = (x.new_empty(0) for _ in range(4))
    if gw is not None:
        d_gw, d_gb = dgate.t() @ u, dgate.sum(0)
    if nw is not None:
        du = dz @ dw if gw is None else torch.addmm(dgate * gw, dz, dw)
        d_nw, d_nb = (du * normal).sum(0), du.sum(0)
    return d_nw, d_nb, d_gw, d_gb, dz.t() @ u, dz.sum(0), g.t() @ hs, (g * s).sum(0)
