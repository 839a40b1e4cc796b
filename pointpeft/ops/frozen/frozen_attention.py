"""Self-attention whose map to queries, keys and values is frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from pointpeft.ops.core import checks, library, products
from pointpeft.ops.core import rows as _rows
from pointpeft.ops.frozen.attention import attention, attention_reference, check_num_heads
from pointpeft.ops.frozen.frozen_linear import checked, frozen_linear, frozen_linear_reference


def _composed(x, weight, bias, scale, shift, num_heads):
    return attention(frozen_linear(x, weight, bias), num_heads, scale, shift)


def _cpu(x, weight, bias, scale, shift, num_heads):
    # The bias, which a product would have to be prepared with, goes into the shift.
    if bias is not None:
        shift = bias if scale is None else torch.addcmul(shift, bias, scale)
        scale = torch.ones_like(bias) if scale is None else scale
    (batch, tokens, c), width = x.shape, weight.shape[0]
    if num_heads < 1 or width % (3 * num_heads):
        raise ValueError(f"num_heads must divide a third of weight's {width} rows, got {num_heads}")
    x, out = x.contiguous(), x.new_empty(batch, tokens, width // 3)
    if not tokens:
        return out
    most = max(1, _rows.per_chunk(width, x.dtype) // tokens)  # clouds
    chunks = _rows.chunks(batch, most)
    weight = products.prepared(weight, batch * tokens // max(1, len(chunks)), "w1")
    for begin, end in chunks:
        rows = (end - begin) * tokens
        z = _rows.scratch(rows, width, x.dtype, "hidden")
        z = products.linear(x[begin:end].view(rows, c), weight, buffer=z)
        _rows.attention(z.view(end - begin, tokens, width), scale, shift, num_heads, out[begin:end])
    return out


def _fake(x, weight, bias, scale, shift, num_heads):
    return x.new_empty((*x.shape[:2], weight.shape[0] // 3))


_op = library.define(
    "frozen_attention(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, int num_heads) -> Tensor",
    cpu=_cpu,
    cuda=_composed,
    fake=_fake,
)


def frozen_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Multi-head self-attention over tokens of [q, k, v] = W x + b with a frozen map, or of γ ⊙ (W x + b) + β.

    Differentiable in x, γ and β. Where no gradient is asked for, the queries, keys and values of all clouds are never
    there at once: on the CPU they are a buffer of some clouds, which the attention reads while they are near the cores.

    Args:
        x: Tokens, any strides; under autocast all tensors are cast to its type. [B, T, C]
        weight: D is a multiple of `num_heads`. [3D, C]
        bias: None for none. [3D]
        num_heads: A divisor of D.
        scale: γ; None where nothing scales and shifts. [3D]
        shift: β, together with `scale`. [3D]

    Returns:
        Contiguous. [B, T, D]

    Raises:
        ValueError: A wrong shape, dtype, device or number of heads, one of `scale` and `shift` alone, or a weight or
            bias that asks for a gradient.

    Source: Vaswani et al., "Attention is all you need", 2017, Eq. 1; Lian et al., "Scaling & shifting your features",
    NeurIPS 2022, Eq. 2.
    """
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    if isinstance(weight, Tensor):
        check_num_heads("weight", "rows", weight.shape, checks.num_rows(weight), num_heads)
    x, weight, bias, scale, shift = checked(x, weight, bias, scale, shift)
    if not x.numel() or library.use_fused_reference(x):
        return frozen_attention_reference(x, weight, bias, num_heads, scale, shift)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, shift))
    if wanted or torch.compiler.is_compiling() or x.device.type == "cuda":
        return _composed(x, weight, bias, scale, shift, num_heads)
    return _op(x, weight, bias, scale, shift, num_heads)


def frozen_attention_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The definition in plain PyTorch; arguments and result as in `frozen_attention`."""
    return attention_reference(frozen_linear_reference(x, weight, bias, scale, shift), num_heads)
