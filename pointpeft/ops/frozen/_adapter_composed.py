"""The adapter in PyTorch's operations: for ranks that the Triton kernels cannot hold, and in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import derivatives, dropout


def forward(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt):
    """As `_adapter_triton.launch`."""
    u = F.layer_norm(x, x.shape[-1:], nw, nb, eps)
    h = F.gelu(F.linear(u, dw, db))
    if seed is not None:
        h = h * dropout.mask(seed, h.numel(), dropout_p).view(h.shape) / (1 - dropout_p)
    a = F.relu(F.linear(u, gw, gb)) * F.linear(h, uw, ub)
    return a, F.gelu(a).mean(1) if with_prompt else x.new_empty(0)


def backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p):
    """As `_adapter_triton.launch_backward`: computes the forward pass again."""
    tensors = (x, nw, nb, gw, gb, dw, db, uw, ub)
    with derivatives.recording(), torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        args: list[Any] = [*leaves, seed, eps, dropout_p, grad_prompt is not None]
        a, prompt = forward(*args)
        outputs, grads = ([a], [grad]) if grad_prompt is None else ([a, prompt], [grad, grad_prompt])
        return tuple(d.contiguous() for d in torch.autograd.grad(outputs, leaves, grads))


def weight_gradients(
    grad: Tensor,
    grad_prompt: Tensor | None,
    x: Tensor,
    weights: tuple[Tensor, ...],
    hs: Tensor,
    dz: Tensor,
    facts: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of the weights from what the backward kernel leaves, as products of matrices.

    Args:
        grad: [B, T, C]
        grad_prompt: [B, C]
        x: [B, T, C]
        weights: As the operation takes them.
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
    normal = (x - mean) * rstd
    u = torch.addcmul(nb, normal, nw)
    du = torch.addmm(dgate * gw, dz, dw)
    gate = dgate.t() @ u, dgate.sum(0)
    return (du * normal).sum(0), du.sum(0), *gate, dz.t() @ u, dz.sum(0), g.t() @ hs, (g * s).sum(0)
