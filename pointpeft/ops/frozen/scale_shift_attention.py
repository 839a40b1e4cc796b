"""Self-attention on scaled and shifted queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, rows
from pointpeft.ops.frozen import scale_shift as _scale_shift  # noqa: F401  declares what ends the backward on CUDA
from pointpeft.ops.frozen.attention import attention_reference, by_pytorch, check_heads, fake


def _adapted(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    # The fused attention reads rows whose channels lie side by side, whatever the strides say.
    return torch.addcmul(beta, z, gamma).contiguous()


# On the CPU the result and the log-sum-exp of each token are kept for the backward: C + heads values a token, against
# the 2 T C multiplications of computing them again. CUDA computes again: there a multiplication costs less than a byte.


def _cpu(z, gamma, beta, num_heads):
    return rows.attention(z, gamma, beta, num_heads)


def _cpu_backward(grad, z, gamma, beta, out, lse, num_heads):
    dz, d_gamma, d_beta = rows.attention_backward(grad, z, gamma, beta, out, lse, num_heads)
    return dz, d_gamma.to(gamma.dtype), d_beta.to(gamma.dtype)


def _cuda(z, gamma, beta, num_heads):
    return by_pytorch(_adapted(z, gamma, beta), num_heads), z.new_empty(0)


def _cuda_backward(grad, z, gamma, beta, _out, _lse, num_heads):
    width = z.shape[-1]
    with derivatives.recording(), torch.enable_grad():
        y = _adapted(z, gamma, beta).detach().requires_grad_()
        (dy,) = torch.autograd.grad(by_pytorch(y, num_heads), y, grad)
    values = z.reshape(-1, width)
    dz, d_gamma, d_beta = torch.ops.pointpeft.scale_shift_backward(dy.reshape(-1, width), values, gamma)
    return dz.view(z.shape), d_gamma, d_beta


def _fake(z, gamma, beta, num_heads):
    return fake(z, num_heads)


def _fake_backward(grad, z, gamma, beta, out, lse, num_heads):
    return z.new_empty(z.shape), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


_op = library.define(
    "scale_shift_attention(Tensor z, Tensor gamma, Tensor beta, int num_heads) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)
_backward_op = library.define(
    "scale_shift_attention_backward(Tensor grad, Tensor z, Tensor gamma, Tensor beta, Tensor? out, Tensor lse, "
    "int num_heads) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)


class _ScaleShiftAttention(torch.autograd.Function):
    """Keeps z, γ and β; on the CPU also the result and its log-sum-exp."""

    @staticmethod
    def forward(ctx, z, gamma, beta, num_heads):
        out, lse = _op(z, gamma, beta, num_heads)
        ctx.save_for_backward(z, gamma, beta, None if z.device.type == "cuda" else out, lse)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.scale_shift_attention")
    def backward(ctx, grad):
        return *_backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.num_heads), None


def scale_shift_attention(z: Tensor, gamma: Tensor, beta: Tensor, num_heads: int) -> Tensor:
    """Multi-head self-attention over tokens of [q, k, v] = γ ⊙ z + β, differentiable in z, γ and β.

    For the backward z is kept, and on the CPU the result; CUDA computes the attention again.

    Args:
        z: Output of the map to queries, keys and values; under autocast all three are cast to its type. [B, T, 3C]
        gamma: [3C]
        beta: [3C]
        num_heads: A divisor of C.

    Returns:
        Contiguous. [B, T, C]

    Raises:
        ValueError: A wrong shape, dtype, device or number of heads.

    Source: Vaswani et al., "Attention is all you need", 2017, Eq. 1; Lian et al., "Scaling & shifting your features",
    NeurIPS 2022, Eq. 2.
    """
    check_heads(z, num_heads)
    z, gamma, beta = library.autocast(z, gamma, beta)
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        checks.require_shape(name, tensor, z.shape[-1:])
        checks.require_same_kind(name, tensor, "z", z)
    if not z.numel() or library.use_fused_reference(z):  # the fused attention divides by the number of tokens
        return scale_shift_attention_reference(z, gamma, beta, num_heads)
    if torch.is_grad_enabled() and (z.requires_grad or gamma.requires_grad or beta.requires_grad):
        return _ScaleShiftAttention.apply(z, gamma, beta, num_heads)
    return _op(z, gamma, beta, num_heads)[0]


def scale_shift_attention_reference(z: Tensor, gamma: Tensor, beta: Tensor, num_heads: int) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `scale_shift_attention`."""
    return attention_reference(gamma * z + beta, num_heads)
