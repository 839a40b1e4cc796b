"""The second half of DAPT's block: the frozen MLP and the adapter beside it, behind one LayerNorm.

Both branches read u = LN(x), which the backward computes again in the place of keeping it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointpeft.ops.core import derivatives, library, products
from pointpeft.ops.core import rows as _rows
from pointpeft.ops.frozen import _adapter, _mlp
from pointpeft.ops.frozen._adapter import AdapterWeights
from pointpeft.ops.frozen._mlp import ScaledMlp

_ATEN = torch.ops.aten


class NormWeights(NamedTuple):
    """A LayerNorm and a scale and a shift after it, as `layer_norm` takes them.

    Attributes:
        weight: [C]
        bias: [C]
        scale: γ; None where nothing scales and shifts. [C]
        shift: β, together with `scale`. [C]
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class Options(NamedTuple):
    """The numbers: added to the variances of x and, in the adapter, of u; probability of dropping an element."""

    norm_eps: float
    eps: float
    dropout_p: float


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LN(x), its mean and 1 / deviation."""
    return _ATEN.native_layer_norm.default(x, x.shape[-1:], weight, bias, eps)


def _split(weights: list[Tensor] | tuple[Tensor, ...]) -> tuple[ScaledMlp, AdapterWeights]:
    """The list of the registered operation, by name."""
    count = len(ScaledMlp._fields)
    return ScaledMlp(*weights[:count]), AdapterWeights(*weights[count:])


def _composed(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep):
    mlp, adapter = _split(weights)
    x = x if branch is None else x + branch
    u = _normed(x, norm_weight, norm_bias, norm_eps)[0].to(mlp.w1.dtype)
    y, z = _mlp.op(u.view(-1, u.shape[-1]), *mlp)
    a, prompt = _adapter.op(u, *adapter, seed, eps, dropout_p, True)
    y = a.add_(y.view(u.shape))
    return y if branch is None else x + y, prompt, z if keep else z.new_empty(0)


def _cpu(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep):
    """What is added to x and what is normed come out of one pass, and both branches are added up in one more."""
    if x.shape[0] == 0:
        return _composed(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep)
    mlp, adapter = _split(weights)
    shape, dtype = x.shape, mlp.w1.dtype
    x = _rows.packed(x.reshape(-1, shape[-1]))
    (n, c), total = x.shape, None
    u, z, a = (_rows.scratch(n, c, dtype, name) for name in ("u", "z", "a"))
    z = torch.empty(n, c, dtype=dtype) if keep else z
    if branch is not None:
        branch, total = _rows.packed(branch.reshape(x.shape)), x.new_empty(x.shape)
    _rows.add_norm(x, branch, norm_weight, norm_bias, norm_eps, total, u)
    _mlp.maps(u, mlp.w1, mlp.scale1, torch.addcmul(mlp.shift1, mlp.b1, mlp.scale1), mlp.w2, out=z)
    half = _adapter.bottleneck(u, adapter, seed, eps, dropout_p)
    products.linear(half.scaled, adapter.up_weight, out=a)
    y = torch.empty(n, c, dtype=dtype) if total is None else total
    shift2 = torch.addcmul(mlp.shift2, mlp.b2, mlp.scale2)
    prompt = _rows.closing(a, adapter.up_bias, half.scale, z, mlp.scale2, shift2, total, shape[0], y)
    return y.view(shape), prompt, z if keep else z.new_empty(0)


def _fake(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep):
    dtype = weights[0].dtype
    y = x.new_empty(x.shape, dtype=dtype if branch is None else x.dtype)
    z = x.new_empty((x.shape[0] * x.shape[1], x.shape[2]) if keep else (0,), dtype=dtype)
    return y, x.new_empty((x.shape[0], x.shape[2]), dtype=dtype), z


_op = library.define(
    "adapted_mlp(Tensor x, Tensor? branch, Tensor norm_weight, Tensor norm_bias, Tensor[] weights, Tensor? seed, "
    "float norm_eps, float eps, float dropout_p, bool keep) -> (Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_composed,
    fake=_fake,
)


class _AdaptedMlp(torch.autograd.Function):
    """Keeps x, which LayerNorm keeps anyway, the second map's output, the weights and the seed."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, seed, options, *weights):
        y, prompt, z = _op(x, None, norm_weight, norm_bias, weights, seed, *options, True)
        ctx.save_for_backward(x, norm_weight, norm_bias, seed, z, *weights)
        ctx.options = options
        return y, prompt

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.frozen_mlp")
    def backward(ctx, grad, grad_prompt):
        x, norm_weight, norm_bias, seed, z, *weights = ctx.saved_tensors
        options, (mlp, adapter) = ctx.options, _split(weights)
        normal, mean, rstd = _normed(x, norm_weight, norm_bias, options.norm_eps)
        u, grad = normal.to(mlp.w1.dtype), grad.contiguous()
        rows = (-1, x.shape[-1])
        du, *mlp_grads = _mlp.backward_op(grad.view(rows), u.view(rows), z, *mlp[:7])
        also, *adapter_grads = _adapter.backward_op(
            grad, grad_prompt, u, *adapter, seed, options.eps, options.dropout_p
        )
        du = also.add_(du.view(x.shape)).to(x.dtype)
        # On a CPU, PyTorch sums the gradients of γ and β over all rows in the type that it is given: never a short one.
        wide = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        given = [t.to(wide) for t in (du, x, mean, rstd, norm_weight, norm_bias)]
        norm_grads = _ATEN.native_layer_norm_backward.default(*given[:2], x.shape[-1:], *given[2:], [True, True, True])
        dx, *sums = (t.to(x.dtype) for t in norm_grads)
        return dx, *sums, None, None, None, None, None, None, *mlp_grads, *adapter_grads


def apply(
    x: Tensor,
    branch: Tensor | None,
    norm: NormWeights,
    mlp: ScaledMlp,
    adapter: AdapterWeights,
    seed: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """MLP(u) + A(u) and A's prompt, with `branch` both residuals too."""
    weight, bias, *terms = library.promoted(*(t for t in norm if t is not None))
    if not terms:
        terms = [torch.ones_like(bias, requires_grad=False), torch.zeros_like(bias)]
    scale, shift = terms
    weight, bias = weight * scale, torch.addcmul(shift, bias, scale)
    weights = [*mlp, *adapter]
    given = [t for t in (x, branch, weight, bias, *weights) if t is not None]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    fits = x.dtype == weight.dtype and (branch is None or branch.dtype == mlp.w1.dtype)
    if fits and not wanted and not torch.compiler.is_compiling():
        return _op(x, branch, weight, bias, weights, seed, *options, False)[:2]
    x = x.contiguous() if branch is None else x + branch
    stream, x = x, x.to(weight.dtype)
    if wanted:
        y, prompt = _AdaptedMlp.apply(x, weight, bias, seed, options, *weights)
    else:
        y, prompt, _ = _composed(x, None, weight, bias, weights, seed, *options, False)
    return y if branch is None else stream + y, prompt
