"""Self-attention on scaled and shifted queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from pointpeft.ops import _check, _library
from pointpeft.ops import scale_shift as _scale_shift  # noqa: F401  declares the operation whose backward ends this one's

_ATEN = torch.ops.aten


def _adapted(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    # The fused attention reads rows whose channels lie side by side, whatever the strides say.
    return torch.addcmul(beta, z, gamma).contiguous()


def _heads(y: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = y.shape
    return y.view(batch, tokens, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4).unbind(0)


def _attend(q, k, v):
    """Mixed values, and what the backward of the device's fused attention needs."""
    if q.device.type == "cpu":
        out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, (lse,)
    out, lse, seed, offset = _ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, (lse, seed, offset)


def _forward(z, gamma, beta, num_heads):
    batch, tokens, width = z.shape
    if not z.numel():  # the fused attention divides by the number of tokens
        return z.new_empty((batch, tokens, width // 3))
    out, _ = _attend(*_heads(_adapted(z, gamma, beta), num_heads))
    return out.transpose(1, 2).reshape(batch, tokens, width // 3)


def _backward(grad, z, gamma, beta, num_heads):
    batch, tokens, width = z.shape
    if not z.numel():
        return z.new_empty(z.shape), gamma.new_zeros(gamma.shape), beta.new_zeros(beta.shape)
    q, k, v = _heads(_adapted(z, gamma, beta), num_heads)
    out, facts = _attend(q, k, v)
    grad = grad.view(batch, tokens, num_heads, -1).transpose(1, 2)
    if z.device.type == "cpu":
        grads = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, *facts, 0.0, False)
    else:
        lse, seed, offset = facts
        grads = _ATEN._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, None, out, lse, seed, offset, 0.0, [True, True, True, False]
        )[:3]
    dy = torch.stack(grads).permute(1, 3, 0, 2, 4).reshape(batch * tokens, width)
    dz, d_gamma, d_beta = torch.ops.pointpeft.scale_shift_backward(dy, z.reshape(-1, width), gamma)
    return dz.view(z.shape), d_gamma, d_beta


def _fake(z, gamma, beta, num_heads):
    return z.new_empty((z.shape[0], z.shape[1], z.shape[2] // 3))


def _fake_backward(grad, z, gamma, beta, num_heads):
    return z.new_empty(z.shape), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


_op = _library.define(
    "scale_shift_attention(Tensor z, Tensor gamma, Tensor beta, int num_heads) -> Tensor",
    cpu=_forward,
    cuda=_forward,
    fake=_fake,
)
_backward_op = _library.define(
    "scale_shift_attention_backward(Tensor grad, Tensor z, Tensor gamma, Tensor beta, int num_heads) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    fake=_fake_backward,
)


class _ScaleShiftAttention(torch.autograd.Function):
    """Keeps z, γ and β."""

    @staticmethod
    def forward(ctx, z, gamma, beta, num_heads):
        ctx.save_for_backward(z, gamma, beta)
        ctx.num_heads = num_heads
        return _op(z, gamma, beta, num_heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *_backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.num_heads), None


def scale_shift_attention(z: Tensor, gamma: Tensor, beta: Tensor, num_heads: int) -> Tensor:
    """Multi-head self-attention over tokens of [q, k, v] = γ ⊙ z + β, differentiable in z, γ and β.

    For the backward z alone is kept; the attention is computed again: 2 T C multiplications per token.

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
    _check.floating("z", z, 3)
    if isinstance(num_heads, bool) or not isinstance(num_heads, (int, torch.SymInt)):
        raise ValueError(f"num_heads must be an int, got {num_heads!r}")
    if num_heads < 1 or z.shape[-1] == 0 or z.shape[-1] % (3 * num_heads):
        raise ValueError(f"z must have a multiple of 3 * num_heads = {3 * num_heads} channels, got {tuple(z.shape)}")
    z, gamma, beta = _library.autocast(z, gamma, beta)
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        _check.shaped(name, tensor, z.shape[-1:])
        _check.same(name, tensor, "z", z)
    if _library.use_fused_reference(z):
        return scale_shift_attention_reference(z, gamma, beta, num_heads)
    if torch.is_grad_enabled() and (z.requires_grad or gamma.requires_grad or beta.requires_grad):
        return _ScaleShiftAttention.apply(z, gamma, beta, num_heads)
    return _op(z, gamma, beta, num_heads)


def scale_shift_attention_reference(z: Tensor, gamma: Tensor, beta: Tensor, num_heads: int) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `scale_shift_attention`."""
    batch, tokens, width = z.shape
    q, k, v = _heads(gamma * z + beta, num_heads)
    share = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # [B, heads, T, T]
    return (share @ v).transpose(1, 2).reshape(batch, tokens, width // 3)
