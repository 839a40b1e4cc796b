"""DAPT's MLP and the dynamic adapter beside it, both behind one LayerNorm that is computed again in the backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointpeft.ops import _adapter, _check, _library
from pointpeft.ops.dynamic_adapter import dynamic_adapter_reference
from pointpeft.ops.layer_norm_scale_shift import layer_norm_scale_shift_reference
from pointpeft.ops.scale_shift_mlp import _backward_op as _mlp_backward_op
from pointpeft.ops.scale_shift_mlp import _op as _mlp_op
from pointpeft.ops.scale_shift_mlp import scale_shift_mlp_reference

_ATEN = torch.ops.aten
_MLP, _ADAPTER = 8, 8  # tensors of each, as their own operations take them


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LN(x), its mean and 1 / deviation."""
    return _ATEN.native_layer_norm.default(x, x.shape[-1:], weight, bias, eps)


def _branches(u, seed, eps, dropout_p, weights):
    """MLP and adapter of u added up, the prompt, and what the MLP keeps beside u."""
    y, z, _ = _mlp_op(u.view(-1, u.shape[-1]), *weights[:_MLP], 0)
    a, prompt = _adapter._op(u, *weights[_MLP:], seed, eps, 1.0, dropout_p, False, True)
    return a.add_(y.view(u.shape)), prompt, z


class _AdaptedMlp(torch.autograd.Function):
    """Keeps x, which LayerNorm keeps anyway, the second map's output, the weights and the seed."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, seed, options, *weights):
        norm_eps, eps, dropout_p, dtype = options
        u = _normed(x, norm_weight, norm_bias, norm_eps)[0].to(dtype)
        y, prompt, z = _branches(u, seed, eps, dropout_p, weights)
        ctx.save_for_backward(x, norm_weight, norm_bias, seed, z, *weights)
        ctx.options = options
        return y, prompt

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_prompt):
        x, norm_weight, norm_bias, seed, z, *weights = ctx.saved_tensors
        norm_eps, eps, dropout_p, dtype = ctx.options
        (w1, b1, gamma1, beta1, w2, b2, gamma2, _), adapter = weights[:_MLP], weights[_MLP:]
        normal, mean, rstd = _normed(x, norm_weight, norm_bias, norm_eps)
        u, grad = normal.to(dtype), grad.contiguous()
        rows = (-1, x.shape[-1])
        kept = z.new_empty(0, w1.shape[0])
        du, d_gamma1, d_beta1, d_gamma2, d_beta2 = _mlp_backward_op(
            grad.view(rows), u.view(rows), z, kept, w1, b1, gamma1, beta1, w2, b2, gamma2
        )
        also, *adapter_grads = _adapter._backward_op(grad, grad_prompt, u, *adapter, seed, eps, 1.0, dropout_p, False)
        du = also.add_(du.view(x.shape)).to(x.dtype)
        norm_grads = _ATEN.native_layer_norm_backward.default(
            du, x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return *norm_grads, None, None, None, None, d_gamma1, d_beta1, None, None, d_gamma2, d_beta2, *adapter_grads


def adapted_mlp(
    x: Tensor,
    norm: Sequence[Tensor],
    mlp: Sequence[Tensor],
    adapter: Sequence[Tensor],
    *,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The second half of DAPT's block: y = MLP(u) + A(u) and A's prompt, with u = γ ⊙ LN(x) + β.

    Differentiable in x, the norm, the adapter and the scales and shifts of the MLP, whose maps are frozen. For the
    backward x and the output of the second map are kept, but not u, which both branches read: it is computed again.

    Args:
        x: Tokens, contiguous or not; under autocast u and the branches are of its type, the norm is not. [B, T, C]
        norm: Weight and bias of LN, γ and β, as `layer_norm_scale_shift` takes them. [C] each
        mlp: w1, b1, γ1, β1, w2, b2, γ2 and β2, as `scale_shift_mlp` takes them.
        adapter: Norm, scale, down and up, weight and bias of each, as `dynamic_adapter` takes them.
        norm_eps: Added to the variance of x.
        eps: Added to the variance of u in the adapter's own LayerNorm.
        dropout_p: Probability of an element of the bottleneck to be dropped, in [0, 1).
        training: Whether to drop.
        seed: Decides, with an element's index, what is dropped; None takes a fresh one. int64, []

    Returns:
        y, contiguous [B, T, C], and the prompt, the mean over tokens of GELU(A(u)) [B, C].

    Raises:
        ValueError: A wrong shape, dtype, device, number of tensors or probability, or a map that asks for a gradient.

    Source: Zhou et al., "Dynamic adapter meets prompt tuning", CVPR 2024, §3.2-3.3 and Eqs. 4-6.
    """
    _check.floating("x", x, 3)
    _check.last("x", x)
    for name, tensors, count in (("norm", norm, 4), ("mlp", mlp, _MLP), ("adapter", adapter, _ADAPTER)):
        if not isinstance(tensors, Sequence) or len(tensors) != count:
            got = len(tensors) if isinstance(tensors, Sequence) else type(tensors).__name__
            raise ValueError(f"{name} must hold {count} tensors, got {got}")
    first, *weights = _library.autocast(x, *mlp, *adapter)
    dtype = first.dtype
    _check_tensors(x, dtype, norm, weights)
    for name, value in (("norm_eps", norm_eps), ("eps", eps)):
        _check.number(name, value, 0.0, "a finite number of at least 0")
    seed = _adapter.checked_seed(x, seed, dropout_p, training)
    if _library.use_fused_reference(x):
        options = {"norm_eps": norm_eps, "eps": eps, "dropout_p": dropout_p, "training": training, "seed": seed}
        return adapted_mlp_reference(x, norm, weights[:_MLP], weights[_MLP:], **options)
    weight, bias, gamma, beta = _library.promoted(*norm)
    x, weight, bias = x.contiguous(), weight * gamma, torch.addcmul(beta, bias, gamma)
    if x.dtype != weight.dtype:
        x = x.to(weight.dtype)
    options = (float(norm_eps), float(eps), float(dropout_p), dtype)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias, *weights)):
        return _AdaptedMlp.apply(x, weight, bias, seed, options, *weights)
    u = _normed(x, weight, bias, options[0])[0].to(dtype)
    return _branches(u, seed, options[1], options[2], weights)[:2]


def _check_tensors(x: Tensor, dtype: torch.dtype, norm: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    c, h, r = x.shape[-1], _check.rows(weights[0]), _check.rows(weights[_MLP + 4])
    like = x.new_empty(0, dtype=dtype)
    shapes = [(h, c), (h,), (h,), (h,), (c, h), (c,), (c,), (c,)]
    shapes += [(c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)]
    for i, tensor in enumerate(norm):
        _check.shaped(f"norm[{i}]", tensor, (c,))
        _check.floating(f"norm[{i}]", tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"norm[{i}] is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(_library.autocast_kind(x)):
            raise ValueError(f"norm[{i}] is {tensor.dtype}, but x is {x.dtype}")
    for i, (tensor, shape) in enumerate(zip(weights, shapes, strict=True)):
        name = f"mlp[{i}]" if i < _MLP else f"adapter[{i - _MLP}]"
        _check.shaped(name, tensor, shape)
        _check.same(name, tensor, "x", like)
        if i in (0, 1, 4, 5) and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")


def adapted_mlp_reference(
    x: Tensor,
    norm: Sequence[Tensor],
    mlp: Sequence[Tensor],
    adapter: Sequence[Tensor],
    *,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch; arguments and result as in `adapted_mlp`."""
    u = layer_norm_scale_shift_reference(x, *norm, eps=norm_eps).to(mlp[0].dtype)
    options = {"eps": eps, "dropout_p": dropout_p, "training": training, "seed": seed}
    a, prompt = dynamic_adapter_reference(u, *adapter, **options, with_prompt=True)
    return scale_shift_mlp_reference(u, *mlp) + a, prompt
