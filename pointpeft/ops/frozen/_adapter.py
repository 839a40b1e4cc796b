"""The adapter's registered operation: a = s ⊙ (W_up h + b_up) and its prompt, the mean over tokens of GELU(a).

h = dropout(GELU(z)), z = W_down u + b_down, s = ReLU(w·u + c) and u = LN(x).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pointpeft.ops.core import derivatives, dropout, library, products, rows
from pointpeft.ops.frozen import _adapter_composed, _adapter_triton


class AdapterWeights(NamedTuple):
    """LayerNorm, gate, down and up map of an adapter of rank R.

    Attributes:
        norm_weight: [C]
        norm_bias: [C]
        gate_weight: [1, C]
        gate_bias: [1]
        down_weight: [R, C]
        down_bias: [R]
        up_weight: [C, R]
        up_bias: [C]
    """

    norm_weight: Tensor
    norm_bias: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor


class Bottleneck(NamedTuple):
    """What the CPU's passes compute of N tokens before the map up.

    Attributes:
        u: LN(x). [N, C]
        stats: Mean and 1 / deviation of each token. [2 N]
        gate: w·u + c. [N]
        scale: s. [N]
        z: [N, R]
        scaled: s ⊙ h. [N, R]
    """

    u: Tensor
    stats: Tensor
    gate: Tensor
    scale: Tensor
    z: Tensor
    scaled: Tensor


def bottleneck(x: Tensor, weights: AdapterWeights, seed: Tensor | None, eps: float, dropout_p: float) -> Bottleneck:
    """The first half of an adapter on the CPU, of tokens [N, C]."""
    u, stats, gate = rows.norm(x, weights.norm_weight, weights.norm_bias, weights.gate_weight, eps)
    gate += weights.gate_bias
    scale = gate.relu()
    z = products.linear(u, weights.down_weight, weights.down_bias)
    return Bottleneck(u, stats, gate, scale, z, rows.hidden(z, scale, seed, dropout_p))


def _cpu(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt):
    shape = x.shape
    x = rows.packed(x.reshape(-1, shape[-1]))
    half = bottleneck(x, AdapterWeights(nw, nb, gw, gb, dw, db, uw, ub), seed, eps, dropout_p)
    a = products.linear(half.scaled, uw)
    prompt = rows.output(a, ub, half.scale, shape[0] if with_prompt else 0)
    return a.view(shape), prompt if with_prompt else x.new_empty(0)


def _cpu_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p):
    shape = x.shape
    x, grad = (rows.packed(t.reshape(-1, shape[-1])) for t in (x, grad))
    half = bottleneck(x, AdapterWeights(nw, nb, gw, gb, dw, db, uw, ub), seed, eps, dropout_p)
    g = grad
    if grad_prompt is not None:
        g = products.linear(half.scaled, uw)
    d_ub, to_bias = rows.gradient(grad, grad_prompt, g, ub, half.scale)
    back = products.linear(g, uw.t())  # [N, R]
    d_uw = torch.mm(g.t(), half.scaled)
    dz, d_db, d_gate = rows.hidden_backward(back, half.z, half.scale, seed, dropout_p)
    d_dw = torch.mm(dz.t(), half.u)
    d_gate = torch.where(half.gate > 0, d_gate + to_bias, 0)
    d_gb = d_gate.sum()[None]
    dx, (d_nw, d_nb, d_unit) = rows.norm_backward(products.linear(dz, dw.t()), x, half.stats, nw, gw, d_gate)
    d_gw = torch.addcmul(d_gb * nb, d_unit, nw)[None]  # u = weight ⊙ x̂ + bias
    grads = AdapterWeights(d_nw, d_nb, d_gw, d_gb, d_dw, d_db, d_uw, d_ub)
    return dx.view(shape), *(t.to(x.dtype) for t in grads)


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


def _fake(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt):
    return x.new_empty(x.shape), x.new_empty((x.shape[0], x.shape[2]) if with_prompt else (0,))


def _fake_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p):
    return [x.new_empty(t.shape) for t in (x, nw, nb, gw, gb, dw, db, uw, ub)]


_ARGUMENTS = (
    f"Tensor x, {', '.join(f'Tensor {name}' for name in AdapterWeights._fields)}, Tensor? seed, float eps, "
    "float dropout_p"
)
op = library.define(f"adapter({_ARGUMENTS}, bool with_prompt) -> (Tensor, Tensor)", cpu=_cpu, cuda=_cuda, fake=_fake)
backward_op = library.define(
    f"adapter_backward(Tensor grad, Tensor? grad_prompt, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * 9)})",
    cpu=_cpu_backward,
    cuda=_cuda_backward,
    fake=_fake_backward,
)


class _Adapter(torch.autograd.Function):
    """Keeps x, the weights and the seed."""

    @staticmethod
    def forward(ctx, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt):
        ctx.save_for_backward(x, nw, nb, gw, gb, dw, db, uw, ub, seed)
        ctx.options = (eps, dropout_p)
        ctx.with_prompt = with_prompt
        return op(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt)

    @staticmethod
    @derivatives.once_differentiable("pointpeft.ops.adapter")
    def backward(ctx, grad, grad_prompt):
        grads = backward_op(grad, grad_prompt if ctx.with_prompt else None, *ctx.saved_tensors, *ctx.options)
        return *grads, None, None, None, None


def apply(
    x: Tensor, weights: AdapterWeights, seed: Tensor | None, eps: float, dropout_p: float, with_prompt: bool
) -> tuple[Tensor, Tensor]:
    """The result and the prompt, which is empty where it is not asked for."""
    args = (x, *weights, seed, float(eps), float(dropout_p), with_prompt)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        return _Adapter.apply(*args)
    return op(*args)


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
