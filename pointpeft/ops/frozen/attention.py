"""Self-attention from queries, keys and values that lie side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, rows


def heads(y: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, as views of `y` [B, T, 3C]. [B, heads, T, C / heads] each"""
    batch, tokens, width = y.shape
    q, k, v = y.view(batch, tokens, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def check_heads(z: Tensor, num_heads: int) -> None:
    """`num_heads` is an int that divides a third of the channels of `z`."""
    checks.require_floating("z", z, 3)
    check_num_heads("z", "channels", z.shape, z.shape[-1], num_heads)


def check_num_heads(name: str, what: str, shape: torch.Size, count: int, num_heads: int) -> None:
    """`num_heads` is an int, and `name` has a positive multiple of three times it of `what`."""
    if isinstance(num_heads, bool) or not isinstance(num_heads, (int, torch.SymInt)):
        raise ValueError(f"num_heads must be an int, got {num_heads!r}")
    if num_heads < 1 or count == 0 or count % (3 * num_heads):
        raise ValueError(f"{name} must have a multiple of 3 * num_heads = {3 * num_heads} {what}, got {tuple(shape)}")


def by_pytorch(z: Tensor, num_heads: int) -> Tensor:
    """Attention by whichever of PyTorch's kernels takes the dtype and the width of a head. [B, T, 3C] -> [B, T, C]"""
    batch, tokens, width = z.shape
    y = F.scaled_dot_product_attention(*heads(z.contiguous(), num_heads))
    return y.transpose(1, 2).reshape(batch, tokens, width // 3)


def _cpu(z, num_heads):
    return rows.attention(z, None, None, num_heads)


def _cuda(z, num_heads):
    return by_pytorch(z, num_heads), z.new_empty(0)


def _cpu_backward(grad, z, out, lse, num_heads):
    return rows.attention_backward(grad, z, None, None, out, lse, num_heads)[0]


def _cuda_backward(grad, z, out, lse, num_heads):
    with derivatives.recording(), torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(by_pytorch(z, num_heads), z, grad)[0]


def fake(z: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Result, and on the CPU the log-sum-exp of each head and token, without values."""
    batch, tokens, width = z.shape
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    kept = z.new_empty(0) if z.device.type == "cuda" else z.new_empty((batch, num_heads, tokens), dtype=wide)
    return z.new_empty((batch, tokens, width // 3)), kept


_op = library.define("attention(Tensor z, int num_heads) -> (Tensor, Tensor)", cpu=_cpu, cuda=_cuda, fake=fake)
_backward_op = library.define(
    "attention_backward(Tensor grad, Tensor z, Tensor out, Tensor lse, int num_heads) -> Tensor",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=lambda grad, z, out, lse, num_heads: z.new_empty(z.shape),
)


class _Attention(torch.autograd.Function):
    """Keeps z, the result and its log-sum-exp."""

    @staticmethod
    def forward(ctx, z, num_heads):
        out, lse = _op(z, num_heads)
        ctx.save_for_backward(z, out, lse)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.attention")
    def backward(ctx, grad):
        return _backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.num_heads), None


def attention(z: Tensor, num_heads: int) -> Tensor:
    """Multi-head self-attention over tokens of [q, k, v] = z; not on the CPU, and in compiled code, PyTorch's.

    Args:
        z: Output of the map to queries, keys and values, any strides; under autocast it is cast to its type.
            [B, T, 3C]
        num_heads: A divisor of C.

    Returns:
        Contiguous. [B, T, C]

    Raises:
        ValueError: A wrong shape, dtype or number of heads.

    Source: Vaswani et al., "Attention is all you need", 2017, Eq. 1.
    """
    check_heads(z, num_heads)
    (z,) = library.autocast(z)
    # The fused attention divides by the number of tokens.
    if not z.numel() or library.reference_is_asked() or library.is_transformed(z):
        return attention_reference(z, num_heads)
    if torch.compiler.is_compiling() or z.device.type != "cpu" or not library.compiled():
        return by_pytorch(z, num_heads)
    if torch.is_grad_enabled() and z.requires_grad:
        return _Attention.apply(z, num_heads)
    return _op(z, num_heads)[0]


def attention_reference(z: Tensor, num_heads: int) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `attention`."""
    batch, tokens, width = z.shape
    q, k, v = heads(z.contiguous(), num_heads)
    share = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # [B, heads, T, T]
    return (share @ v).transpose(1, 2).reshape(batch, tokens, width // 3)
