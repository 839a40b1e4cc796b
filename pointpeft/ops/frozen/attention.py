"""Self-attention from queries, keys and values that lie side by side, or from their scale and shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, rows
from pointpeft.ops.frozen import scale_shift as _scale_shift  # noqa: F401  declares what ends the backward on CUDA


def heads(y: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, as views of `y` [B, T, 3C]. [B, heads, T, C / heads] each"""
    batch, tokens, width = y.shape
    q, k, v = y.view(batch, tokens, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4)
    return q, k, v


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


def _scaled(z: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    # The fused attention reads rows whose channels lie side by side, whatever the strides say.
    return z if scale is None or shift is None else torch.addcmul(shift, z, scale).contiguous()


# On the CPU the result and the log-sum-exp of each token are kept for the backward: C + heads values a token, against
# the 2 T C multiplications of computing them again. CUDA computes again: there a multiplication costs less than a byte.


def _cpu(z, scale, shift, num_heads):
    return rows.attention(z, scale, shift, num_heads)


def _cpu_backward(grad, z, scale, shift, out, lse, num_heads):
    dz, *sums = rows.attention_backward(grad, z, scale, shift, out, lse, num_heads)
    return dz, *(total.to(z.dtype) for total in sums)


def _cuda(z, scale, shift, num_heads):
    return by_pytorch(_scaled(z, scale, shift), num_heads), z.new_empty(0)


def _cuda_backward(grad, z, scale, shift, _out, _lse, num_heads):
    with derivatives.recording(), torch.enable_grad():
        y = _scaled(z, scale, shift).detach().requires_grad_()
        (dy,) = torch.autograd.grad(by_pytorch(y, num_heads), y, grad)
    if scale is None:
        return dy, z.new_empty(0), z.new_empty(0)
    flat = (-1, z.shape[-1])
    dz, d_scale, d_shift = torch.ops.pointpeft.scale_shift_backward(dy.reshape(flat), z.reshape(flat), scale)
    return dz.view(z.shape), d_scale, d_shift


def _fake(z, scale, shift, num_heads):
    batch, tokens, width = z.shape
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    lse = z.new_empty(0) if z.device.type == "cuda" else z.new_empty((batch, num_heads, tokens), dtype=wide)
    return z.new_empty((batch, tokens, width // 3)), lse


def _fake_backward(grad, z, scale, shift, out, lse, num_heads):
    return z.new_empty(z.shape), *(z.new_empty((0,) if t is None else t.shape) for t in (scale, shift))


_op = library.define(
    "attention(Tensor z, Tensor? scale, Tensor? shift, int num_heads) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)
_backward_op = library.define(
    "attention_backward(Tensor grad, Tensor z, Tensor? scale, Tensor? shift, Tensor? out, Tensor lse, int num_heads) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)


class _Attention(torch.autograd.Function):
    """Keeps z, γ and β; on the CPU also the result and its log-sum-exp."""

    @staticmethod
    def forward(ctx, z, scale, shift, num_heads):
        out, lse = _op(z, scale, shift, num_heads)
        ctx.save_for_backward(z, scale, shift, None if z.device.type == "cuda" else out, lse)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.attention")
    def backward(ctx, grad):
        saved = ctx.saved_tensors  # read once: a recomputed tensor can be taken a single time
        dz, *sums = _backward_op(grad.contiguous(), *saved, ctx.num_heads)
        return dz, *([None, None] if saved[1] is None else sums), None


def attention(z: Tensor, num_heads: int, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Multi-head self-attention over tokens of [q, k, v] = z, or of γ ⊙ z + β with a scale γ and a shift β.

    Differentiable in z, γ and β. For the backward z is kept, and on the CPU the result. Without γ and β PyTorch's
    kernels answer elsewhere than on the CPU, and in compiled code.

    Args:
        z: Output of the map to queries, keys and values, any strides; under autocast all tensors are cast to its type.
            [B, T, 3C]
        num_heads: A divisor of C.
        scale: γ; None where nothing scales and shifts. [3C]
        shift: β, together with `scale`. [3C]

    Returns:
        Contiguous. [B, T, C]

    Raises:
        ValueError: A wrong shape, dtype, device or number of heads, or one of `scale` and `shift` alone.

    Source: Vaswani et al., "Attention is all you need", 2017, Eq. 1; Lian et al., "Scaling & shifting your features",
    NeurIPS 2022, Eq. 2.
    """
    checks.require_floating("z", z, 3)
    check_num_heads("z", "channels", z.shape, z.shape[-1], num_heads)
    checks.require_together("scale", scale, "shift", shift)
    if scale is None or shift is None:
        (z,) = library.autocast(z)
        use_reference = library.reference_is_asked() or library.is_transformed(z)
    else:
        z, scale, shift = library.autocast(z, scale, shift)
        for name, tensor in (("scale", scale), ("shift", shift)):
            checks.require_shape(name, tensor, z.shape[-1:])
            checks.require_same_kind(name, tensor, "z", z)
        use_reference = library.use_fused_reference(z)
    if not z.numel() or use_reference:  # the fused attention divides by the number of tokens
        return attention_reference(z, num_heads, scale, shift)
    if scale is None and (torch.compiler.is_compiling() or z.device.type != "cpu" or not library.compiled()):
        return by_pytorch(z, num_heads)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (z, scale, shift)):
        return _Attention.apply(z, scale, shift, num_heads)
    return _op(z, scale, shift, num_heads)[0]


def attention_reference(z: Tensor, num_heads: int, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `attention`."""
    batch, tokens, width = z.shape
    y = z if scale is None or shift is None else scale * z + shift
    q, k, v = heads(y.contiguous(), num_heads)
    share = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)  # [B, heads, T, T]
    return (share @ v).transpose(1, 2).reshape(batch, tokens, width // 3)
