"""DAPT's MLP and the dynamic adapter beside it, both behind one LayerNorm that is computed again in the backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, products
from pointpeft.ops.core import rows as _rows
from pointpeft.ops.frozen import _adapter
from pointpeft.ops.frozen._adapter import AdapterWeights
from pointpeft.ops.frozen.adapter import adapter_reference
from pointpeft.ops.frozen.layer_norm import layer_norm_reference
from pointpeft.ops.frozen.scale_shift_mlp import _backward_op as _mlp_backward_op
from pointpeft.ops.frozen.scale_shift_mlp import _op as _mlp_op
from pointpeft.ops.frozen.scale_shift_mlp import maps, scale_shift_mlp_reference

_ATEN = torch.ops.aten
_MLP, _ADAPTER = 8, 8  # tensors of each, as their own operations take them


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LN(x), its mean and 1 / deviation."""
    return _ATEN.native_layer_norm.default(x, x.shape[-1:], weight, bias, eps)


def _branches(u, seed, eps, dropout_p, weights):
    """MLP and adapter of u added up, the prompt, and what the MLP keeps beside u."""
    y, z = _mlp_op(u.view(-1, u.shape[-1]), *weights[:_MLP])
    a, prompt = _adapter.op(u, *weights[_MLP:], seed, eps, dropout_p, True)
    return a.add_(y.view(u.shape)), prompt, z


def _composed(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep):
    x = x if branch is None else x + branch
    u = _normed(x, norm_weight, norm_bias, norm_eps)[0].to(weights[0].dtype)
    y, prompt, z = _branches(u, seed, eps, dropout_p, weights)
    return y if branch is None else x + y, prompt, z if keep else z.new_empty(0)


def _cpu(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep):
    """What is added to x and what is normed come out of one pass, and both branches are added up in one more."""
    if x.shape[0] == 0:
        return _composed(x, branch, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, keep)
    (w1, b1, gamma1, beta1, w2, b2, gamma2, beta2), adapter = weights[:_MLP], AdapterWeights(*weights[_MLP:])
    shape, dtype = x.shape, w1.dtype
    x = _rows.packed(x.reshape(-1, shape[-1]))
    (n, c), total = x.shape, None
    u, z, a = (_rows.scratch(n, c, dtype, name) for name in ("u", "z", "a"))
    z = torch.empty(n, c, dtype=dtype) if keep else z
    if branch is not None:
        branch, total = _rows.packed(branch.reshape(x.shape)), x.new_empty(x.shape)
    _rows.add_norm(x, branch, norm_weight, norm_bias, norm_eps, total, u)
    maps(u, w1, b1, gamma1, beta1, w2, out=z)
    half = _adapter.bottleneck(u, adapter, seed, eps, dropout_p)
    products.linear(half.scaled, adapter.up_weight, out=a)
    y = torch.empty(n, c, dtype=dtype) if total is None else total
    shift2 = torch.addcmul(beta2, b2, gamma2)
    prompt = _rows.closing(a, adapter.up_bias, half.scale, z, gamma2, shift2, total, shape[0], y)
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
        norm_eps, eps, dropout_p, _ = options
        y, prompt, z = _op(x, None, norm_weight, norm_bias, weights, seed, norm_eps, eps, dropout_p, True)
        ctx.save_for_backward(x, norm_weight, norm_bias, seed, z, *weights)
        ctx.options = options
        return y, prompt

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.adapted_mlp")
    def backward(ctx, grad, grad_prompt):
        x, norm_weight, norm_bias, seed, z, *weights = ctx.saved_tensors
        norm_eps, eps, dropout_p, dtype = ctx.options
        (w1, b1, gamma1, beta1, w2, b2, gamma2, _), adapter = weights[:_MLP], weights[_MLP:]
        normal, mean, rstd = _normed(x, norm_weight, norm_bias, norm_eps)
        u, grad = normal.to(dtype), grad.contiguous()
        rows = (-1, x.shape[-1])
        du, d_gamma1, d_beta1, d_gamma2, d_beta2 = _mlp_backward_op(
            grad.view(rows), u.view(rows), z, w1, b1, gamma1, beta1, w2, b2, gamma2
        )
        also, *adapter_grads = _adapter.backward_op(grad, grad_prompt, u, *adapter, seed, eps, dropout_p)
        du = also.add_(du.view(x.shape)).to(x.dtype)
        norm_grads = _ATEN.native_layer_norm_backward.default(
            du, x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return *norm_grads, None, None, None, None, d_gamma1, d_beta1, None, None, d_gamma2, d_beta2, *adapter_grads


def adapted_mlp(
    x: Tensor,
    norm: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    adapter: Sequence[Tensor],
    *,
    branch: Tensor | None = None,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The second half of DAPT's block: y = MLP(u) + A(u) and A's prompt, with u = γ ⊙ LN(x) + β.

    Differentiable in x, the norm, the adapter and the scales and shifts of the MLP, whose maps are frozen. For the
    backward x and the output of the second map are kept, but not u, which both branches read: it is computed again.
    With `branch` both residuals of the block belong to it: x + branch stands in the place of x, and is added to y.

    Args:
        x: Tokens, contiguous or not; under autocast u and the branches are of its type, the norm is not. [B, T, C]
        norm: Weight and bias of LN, γ and β, as `layer_norm` takes them. [C] each
        mlp: w1, b1, γ1, β1, w2, b2, γ2 and β2, as `scale_shift_mlp` takes them. Here and in `norm` a γ and its β may be
            None: where they are folded into what stands before them.
        adapter: Norm, scale, down and up, weight and bias of each, as `adapter` takes them.
        branch: What attention adds to x; under autocast of its type while x may stay float32. [B, T, C]
        norm_eps: Added to the variance of x.
        eps: Added to the variance of u in the adapter's own LayerNorm.
        dropout_p: Probability of an element of the bottleneck to be dropped, in [0, 1).
        training: Whether to drop.
        seed: Decides, with an element's index, what is dropped; None takes a fresh one. int64, []

    Returns:
        y, contiguous, with `branch` of the type that x and it have together [B, T, C], and the prompt, the mean over
        tokens of GELU(A(u)) [B, C].

    Raises:
        ValueError: A wrong shape, dtype, device, number of tensors or probability, or a map that asks for a gradient.

    Source: Zhou et al., "Dynamic adapter meets prompt tuning", CVPR 2024, §3.2-3.3 and Eqs. 4-6.
    """
    checks.require_floating("x", x, 3)
    checks.require_channels("x", x)
    for name, tensors, count in (("norm", norm, 4), ("mlp", mlp, _MLP), ("adapter", adapter, _ADAPTER)):
        if not isinstance(tensors, Sequence) or len(tensors) != count:
            got = len(tensors) if isinstance(tensors, Sequence) else type(tensors).__name__
            raise ValueError(f"{name} must hold {count} tensors, got {got}")
    norm, mlp = _filled("norm", norm, (2,)), _filled("mlp", mlp, (2, 6))
    first, *weights = library.autocast(x, *mlp, *adapter)
    dtype = first.dtype
    _check_tensors(x, dtype, norm, weights)
    if branch is not None:
        checks.require_shape("branch", branch, x.shape)
        checks.require_floating("branch", branch, 3)
        if branch.device != x.device:
            raise ValueError(f"branch is on {branch.device}, but x is on {x.device}")
        if branch.dtype not in (x.dtype, dtype):
            raise ValueError(f"branch is {branch.dtype}, but x is {x.dtype}")
    for name, value in (("norm_eps", norm_eps), ("eps", eps)):
        checks.require_number(name, value, 0.0, "a finite number of at least 0")
    seed = _adapter.checked_seed(x, seed, dropout_p, training)
    if library.use_fused_reference(x):
        options = {"norm_eps": norm_eps, "eps": eps, "dropout_p": dropout_p, "training": training, "seed": seed}
        return adapted_mlp_reference(x, norm, weights[:_MLP], weights[_MLP:], branch=branch, **options)
    weight, bias, gamma, beta = library.promoted(*norm)
    weight, bias = weight * gamma, torch.addcmul(beta, bias, gamma)
    options = (float(norm_eps), float(eps), float(dropout_p))
    given = [t for t in (x, branch, weight, bias, *weights) if t is not None]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    fits = x.dtype == weight.dtype and (branch is None or branch.dtype == dtype)
    if fits and not wanted and not torch.compiler.is_compiling():
        return _op(x, branch, weight, bias, weights, seed, *options, False)[:2]
    x = x.contiguous() if branch is None else x + branch
    stream, x = x, x.to(weight.dtype)
    if wanted:
        y, prompt = _AdaptedMlp.apply(x, weight, bias, seed, (*options, dtype), *weights)
    else:
        y, prompt, _ = _composed(x, None, weight, bias, weights, seed, *options, False)
    return y if branch is None else stream + y, prompt


def _filled(name: str, tensors: Sequence[Tensor | None], places: tuple[int, ...]) -> list[Tensor]:
    """`tensors` with ones and zeros for γ and β that are None; `places` are those of the γ."""
    filled = list(tensors)
    for i in places:
        before, gamma, beta = filled[i - 1 : i + 2]
        if (gamma is None) != (beta is None):
            raise ValueError(f"{name}[{i}] and {name}[{i + 1}] must be given together, or both be None")
        if gamma is None and isinstance(before, Tensor):
            filled[i : i + 2] = torch.ones_like(before, requires_grad=False), torch.zeros_like(before)
    return filled  # pyrefly: ignore[bad-return]  # whatever else is None is refused where shapes are


def _check_tensors(x: Tensor, dtype: torch.dtype, norm: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    c, h, r = x.shape[-1], checks.num_rows(weights[0]), checks.num_rows(weights[_MLP + 4])
    like = x.new_empty(0, dtype=dtype)
    shapes = [(h, c), (h,), (h,), (h,), (c, h), (c,), (c,), (c,)]
    shapes += [(c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)]
    for i, tensor in enumerate(norm):
        checks.require_shape(f"norm[{i}]", tensor, (c,))
        checks.require_floating(f"norm[{i}]", tensor, 1)
        mixed = x.dtype.itemsize == 2 and tensor.dtype == torch.float32  # as LayerNorm allows
        if tensor.device != x.device:
            raise ValueError(f"norm[{i}] is on {tensor.device}, but x is on {x.device}")
        if tensor.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(library.autocast_kind(x)):
            raise ValueError(f"norm[{i}] is {tensor.dtype}, but x is {x.dtype}")
    for i, (tensor, shape) in enumerate(zip(weights, shapes, strict=True)):
        name = f"mlp[{i}]" if i < _MLP else f"adapter[{i - _MLP}]"
        checks.require_shape(name, tensor, shape)
        checks.require_same_kind(name, tensor, "x", like)
        if i in (0, 1, 4, 5) and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must be frozen, but it requires a gradient")


def adapted_mlp_reference(
    x: Tensor,
    norm: Sequence[Tensor | None],
    mlp: Sequence[Tensor | None],
    adapter: Sequence[Tensor],
    *,
    branch: Tensor | None = None,
    norm_eps: float = 1e-5,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch; arguments and result as in `adapted_mlp`."""
    norm, mlp = _filled("norm", norm, (2,)), _filled("mlp", mlp, (2, 6))
    x = x if branch is None else x + branch
    u = layer_norm_reference(x, *norm, eps=norm_eps).to(mlp[0].dtype)
    options = {"eps": eps, "dropout_p": dropout_p, "training": training, "seed": seed}
    a, prompt = adapter_reference(u, AdapterWeights(*adapter), **options, with_prompt=True)
    y = scale_shift_mlp_reference(u, *mlp) + a
    return y if branch is None else x + y, prompt
