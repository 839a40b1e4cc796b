"""The bottleneck adapters' one operation: with or without LayerNorm, a scale per token, dropout and a prompt.

All forms compute a = s ⊙ (W_up h + b_up) with h = dropout(act(z)), z = W_down u + b_down, u = LN(x) or x, and
s = multiplier · ReLU(w·u + c), or the multiplier alone.
"""

from typing import Any

import torch
from torch import Tensor

from pointpeft.ops.core import derivatives, dropout, library, products, rows
from pointpeft.ops.frozen import _adapter_composed, _adapter_triton


def _bottleneck_cpu(x, nw, nb, gw, gb, dw, db, seed, eps, multiplier, dropout_p, relu):
    """U of tokens [N, C], its mean and 1 / deviation, the gate before its ReLU, s, z, and s ⊙ h."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, stats, gate = x, None, None
    if nw is not None:
        u, stats, gate = rows.norm(x, nw, nb, gw, eps)
    elif gw is not None:
        gate = torch.mv(u, gw[0]).to(wide)
    if gw is None:
        gate, s = None, x.new_full((x.shape[0],), multiplier, dtype=wide)
    else:
        gate += gb
        s = gate.relu().mul_(multiplier)
    z = products.linear(u, dw, db)
    return u, stats, gate, s, z, rows.hidden(z, s, seed, dropout_p, relu)


def _cpu(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
    shape = x.shape
    x = rows.packed(x.reshape(-1, shape[-1]))
    *_, s, _, hs = _bottleneck_cpu(x, nw, nb, gw, gb, dw, db, seed, eps, multiplier, dropout_p, relu)
    a = products.linear(hs, uw)
    prompt = rows.output(a, ub, s, shape[0] if with_prompt else 0)
    return a.view(shape), prompt if with_prompt else x.new_empty(0)


def _cpu_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu):
    shape = x.shape
    x, grad = (rows.packed(t.reshape(-1, shape[-1])) for t in (x, grad))
    weights = (nw, nb, gw, gb, dw, db)
    u, stats, gate, s, z, hs = _bottleneck_cpu(x, *weights, seed, eps, multiplier, dropout_p, relu)
    g = grad
    if grad_prompt is not None:
        g = products.linear(hs, uw)
    d_ub, to_bias = rows.gradient(grad, grad_prompt, g, ub, s)
    back = products.linear(g, uw.t())  # [N, R]
    d_uw = torch.mm(g.t(), hs)
    dz, d_db, dgate = rows.hidden_backward(back, z, s, seed, dropout_p, relu)
    d_dw = torch.mm(dz.t(), u)
    du = products.linear(dz, dw.t())
    d_gw = d_gb = d_nw = d_nb = none = x.new_empty(0)
    if gate is not None:
        dgate = torch.where(gate > 0, (dgate + to_bias) * multiplier, 0)
        d_gb = dgate.sum()[None]
    if nw is not None and stats is not None:
        du, (d_nw, d_nb, d_unit) = rows.norm_backward(du, x, stats, nw, gw, dgate if gate is not None else None)
        if gate is not None:  # u = weight ⊙ x̂ + bias
            d_gw = torch.addcmul(d_gb * nb, d_unit, nw)[None]
    elif gate is not None:
        du.addr_(dgate.to(du.dtype), gw[0])
        d_gw = torch.mv(u.t(), dgate.to(u.dtype))[None]
    grads = (d_nw, d_nb, d_gw, d_gb, d_dw, d_db, d_uw, d_ub)
    return du.view(shape), *(none.clone() if t is none else t.to(x.dtype) for t in grads)


def _held(down_weight: Tensor) -> bool:
    """Whether the Triton kernels hold the rank; says once where they do not."""
    rank, dtype = down_weight.shape[0], down_weight.dtype
    limit = _adapter_triton.MAX_RANK_FLOAT32 if dtype == torch.float32 else _adapter_triton.MAX_RANK
    if rank > limit:
        library.warn_composed(f"an adapter of rank {rank} in {dtype}", f"hold ranks up to {limit}")
    return rank <= limit


def _cuda(x, nw, nb, gw, gb, dw, *rest):
    return (_adapter_triton.launch if _held(dw) else _adapter_composed.forward)(x, nw, nb, gw, gb, dw, *rest)


def _cuda_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, *rest):
    answer = _adapter_triton.launch_backward if _held(dw) else _adapter_composed.backward
    return answer(grad, grad_prompt, x, nw, nb, gw, gb, dw, *rest)


def _fake(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
    return x.new_empty(x.shape), x.new_empty((x.shape[0], x.shape[2]) if with_prompt else (0,))


def _fake_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu):
    return [x.new_empty(x.shape)] + [
        x.new_empty((0,) if w is None else w.shape) for w in (nw, nb, gw, gb, dw, db, uw, ub)
    ]


_WEIGHTS = (
    "Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor? gate_weight, Tensor? gate_bias, Tensor down_weight, "
    "Tensor down_bias, Tensor up_weight, Tensor up_bias, Tensor? seed, float eps, float multiplier, float dropout_p, "
    "bool relu"
)
_op = library.define(f"adapter({_WEIGHTS}, bool with_prompt) -> (Tensor, Tensor)", cpu=_cpu, cuda=_cuda, fake=_fake)
_backward_op = library.define(
    f"adapter_backward(Tensor grad, Tensor? grad_prompt, {_WEIGHTS}) -> ({', '.join(['Tensor'] * 9)})",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)


class _Adapter(torch.autograd.Function):
    """Keeps x, the weights and the seed."""

    @staticmethod
    def forward(ctx, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
        ctx.save_for_backward(x, nw, nb, gw, gb, dw, db, uw, ub, seed)
        ctx.options = (eps, multiplier, dropout_p, relu)
        ctx.with_prompt = with_prompt
        return _op(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.dynamic_adapter or bottleneck_adapter")
    def backward(ctx, grad, grad_prompt):
        saved = ctx.saved_tensors
        grads = _backward_op(grad, grad_prompt if ctx.with_prompt else None, *saved, *ctx.options)
        grads = [g if tensor is not None else None for g, tensor in zip(grads, saved[:9], strict=True)]
        return *grads, None, None, None, None, None, None


def apply(
    x: Tensor,
    weights: Any,
    seed: Tensor | None,
    eps: float,
    multiplier: float,
    dropout_p: float,
    activation: str,
    with_prompt: bool,
) -> tuple[Tensor, Tensor]:
    """The result and the prompt; `weights` as the kernels take them, None where missing."""
    args = (x, *weights, seed, float(eps), float(multiplier), float(dropout_p), activation == "relu", with_prompt)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
        return _Adapter.apply(*args)
    return _op(*args)


def checked_seed(x: Tensor, seed: Tensor | None, dropout_p: float, training: bool) -> Tensor | None:
    """The seed to drop with, None where nothing is dropped."""
    if not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p!r}")
    if seed is not None and (
        not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.dim() or seed.device != x.device
    ):
        got = f"{seed.dtype} {tuple(seed.shape)} on {seed.device}" if isinstance(seed, Tensor) else type(seed).__name__
        raise ValueError(f"seed must be an int64 tensor of shape () on {x.device}, got {got}")
    if not training or dropout_p == 0:
        return None
    return dropout.fresh_seed(x.device) if seed is None else seed
