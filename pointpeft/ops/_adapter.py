"""The bottleneck adapters' kernels: with or without LayerNorm, a scale per token, dropout and a prompt.

All forms compute a = s ⊙ (W_up h + b_up) with h = dropout(act(z)), z = W_down u + b_down, u = LN(x) or x, and
s = multiplier · ReLU(w·u + c), or the multiplier alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pointpeft.ops import _dropout, _library, _matmul, _rows, _triton
from pointpeft.ops._dropout import kept

if TYPE_CHECKING:
    import triton.language as tl

PROMPT_ROWS = 16  # tokens whose GELU(a) one row of partial sums holds; the least BLOCK_M
SPLITS = 24  # parts of the tokens that the weights' gradients are summed over, each by its own program

# Triton. A program of the forward and of the first backward kernel owns BLOCK_M tokens of one cloud and walks their C
# channels in steps of BLOCK_C, several times: after the first time they come from L1. The bottleneck (BLOCK_M x R)
# stays in registers. Weights (2 C R) come from L2. No barrier, no atomic: results do not depend on the schedule.


@_triton.device_function
def _activate(z, RELU: tl.constexpr):
    """act(z) and its derivative."""
    if RELU:
        return tl.maximum(z, 0.0), tl.where(z > 0, 1.0, 0.0)
    else:
        below = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        return z * below, below + z * tl.exp(-0.5 * z * z) * 0.3989422804014327


@_triton.device_function
def _row_statistics(x, start, inside, C, eps, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and reciprocal deviation of each token. [BLOCK_M] each"""
    total = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        total += tl.sum(tl.load(x + start[:, None] + columns[None], there, 0.0).to(tl.float32), 1)
    mean = total / C
    total = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        value = tl.load(x + start[:, None] + columns[None], there, 0.0).to(tl.float32)
        total += tl.sum(tl.where(there, (value - mean[:, None]) * (value - mean[:, None]), 0.0), 1)
    return mean, 1.0 / tl.sqrt(total / C + eps)


@_triton.device_function
def _input(x, norm_weight, norm_bias, start, columns, there, C, mean, rstd, NORM: tl.constexpr):
    """The input u and the normalised x of a block of channels, 0 outside. [BLOCK_M, BLOCK_C] each"""
    value = tl.load(x + start[:, None] + columns[None], there, 0.0).to(tl.float32)
    if NORM:
        value = (value - mean[:, None]) * rstd[:, None]
        weight = tl.load(norm_weight + columns, columns < C, 0.0).to(tl.float32)
        bias = tl.load(norm_bias + columns, columns < C, 0.0).to(tl.float32)
        return tl.where(there, value * weight[None] + bias[None], 0.0), tl.where(there, value, 0.0)
    else:
        return value, value


@_triton.device_function
def _bottleneck(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
    NORM: tl.constexpr, GATE: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Bottleneck z [BLOCK_M, RP] and the gate before its ReLU [BLOCK_M]."""
    ranks = tl.arange(0, RP)
    z = tl.zeros((BLOCK_M, RP), tl.float32)
    gate = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        u, _ = _input(x, norm_weight, norm_bias, start, columns, there, C, mean, rstd, NORM)
        if GATE:
            gate += tl.sum(u * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None], 1)
        weight = tl.load(
            down_weight + ranks[None] * C + columns[:, None], (ranks < R)[None] & (columns < C)[:, None], 0.0
        )
        z = tl.dot(u.to(weight.dtype), weight, z, input_precision=PRECISION)
    z += tl.load(down_bias + ranks, ranks < R, 0.0).to(tl.float32)[None]
    if GATE:
        gate += tl.load(gate_bias).to(tl.float32)
    return z, gate


@_triton.device_function
def _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr, RP: tl.constexpr):
    """What dropout multiplies h with. [BLOCK_M, RP]"""
    if DROPOUT:
        keep = kept(seed, tokens[:, None] * R + ranks[None], dropout_p)
        return tl.where(keep, 1.0 / (1.0 - dropout_p), 0.0)
    else:
        return tl.full((BLOCK_M, RP), 1.0, tl.float32)


_CONFIGS = [
    ({"BLOCK_M": 32, "BLOCK_C": 64}, 4, 2),
    ({"BLOCK_M": 16, "BLOCK_C": 128}, 4, 2),
    ({"BLOCK_M": 32, "BLOCK_C": 128}, 8, 2),
    ({"BLOCK_M": 64, "BLOCK_C": 64}, 8, 2),
]


@_triton.kernel(_CONFIGS, key=["T", "C", "R"])
def _forward_kernel(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, up_weight, up_bias, seed, out, partial,
    T, C, R, eps, multiplier, dropout_p,
    NORM: tl.constexpr, GATE: tl.constexpr, DROPOUT: tl.constexpr, RELU: tl.constexpr, PROMPT: tl.constexpr,
    RP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """a, and sums of GELU(a) over 16 tokens each; program (cloud, tokens). Moves 2 T C values and 2 C R weights."""
    cloud = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < T
    tokens = cloud * T + rows
    start = tokens * C
    ranks = tl.arange(0, RP)
    mean = tl.zeros((BLOCK_M,), tl.float32)
    rstd = tl.zeros((BLOCK_M,), tl.float32)
    if NORM:
        mean, rstd = _row_statistics(x, start, inside, C, eps, BLOCK_M, BLOCK_C)
    z, gate = _bottleneck(
        x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
        NORM, GATE, RP, PRECISION, BLOCK_M, BLOCK_C,
    )  # fmt: skip
    h, _ = _activate(z, RELU)
    h *= _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT, BLOCK_M, RP)
    s = tl.full((BLOCK_M,), 1.0, tl.float32) * multiplier
    if GATE:
        s *= tl.maximum(gate, 0.0)
    h = h.to(up_weight.dtype.element_ty)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        weight = tl.load(
            up_weight + columns[None] * R + ranks[:, None], (columns < C)[None] & (ranks < R)[:, None], 0.0
        )
        a = tl.dot(h, weight, input_precision=PRECISION)
        a = s[:, None] * (a + tl.load(up_bias + columns, columns < C, 0.0).to(tl.float32)[None])
        tl.store(out + start[:, None] + columns[None], a.to(out.dtype.element_ty), there)
        if PROMPT:
            g, _ = _activate(a, False)
            sums = tl.sum(tl.reshape(tl.where(there, g, 0.0), (BLOCK_M // 16, 16, BLOCK_C)), 1)
            parts = tl.program_id(1) * (BLOCK_M // 16) + tl.arange(0, BLOCK_M // 16)
            num_parts = (T + 15) // 16
            place = partial + (cloud * num_parts + parts[:, None]) * C + columns[None]
            tl.store(place, sums, (parts < num_parts)[:, None] & (columns < C)[None])


@_triton.device_function
def _gradient(grad, grad_prompt, up_weight, up_bias, hs, s, cloud, start, columns, there, T, C, R, PROMPT: tl.constexpr,
              RP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient at a, that of the prompt included. [rows, BLOCK_C]"""
    g = tl.load(grad + start[:, None] + columns[None], there, 0.0).to(tl.float32)
    if PROMPT:
        ranks = tl.arange(0, RP)
        weight = tl.load(
            up_weight + columns[None] * R + ranks[:, None], (columns < C)[None] & (ranks < R)[:, None], 0.0
        )
        a = tl.dot(hs, weight, input_precision=PRECISION)
        a += s[:, None] * tl.load(up_bias + columns, columns < C, 0.0).to(tl.float32)[None]
        _, slope = _activate(a, False)
        g += slope * tl.load(grad_prompt + cloud[:, None] * C + columns[None], there, 0.0).to(tl.float32) / T
    return g


@_triton.kernel(_CONFIGS, key=["T", "C", "R"])
def _backward_kernel(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, up_weight, up_bias, seed,
    grad, grad_prompt, grad_x, out_hs, out_dz, out_rows, T, C, R, eps, multiplier, dropout_p,
    NORM: tl.constexpr, GATE: tl.constexpr, DROPOUT: tl.constexpr, RELU: tl.constexpr, PROMPT: tl.constexpr,
    RP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes the bottleneck again, then the gradient of x; leaves s ⊙ h and the gradient of z (T x R each) and per
    token (mean, 1 / deviation, s, gradient of the gate) for the weights' kernel. Program (cloud, tokens).
    """
    cloud = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < T
    tokens = cloud * T + rows
    clouds = tokens * 0 + cloud
    start = tokens * C
    ranks = tl.arange(0, RP)
    mean = tl.zeros((BLOCK_M,), tl.float32)
    rstd = tl.zeros((BLOCK_M,), tl.float32)
    if NORM:
        mean, rstd = _row_statistics(x, start, inside, C, eps, BLOCK_M, BLOCK_C)
    z, gate = _bottleneck(
        x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
        NORM, GATE, RP, PRECISION, BLOCK_M, BLOCK_C,
    )  # fmt: skip
    h, slope = _activate(z, RELU)
    survivors = _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT, BLOCK_M, RP)
    h *= survivors
    s = tl.full((BLOCK_M,), 1.0, tl.float32) * multiplier
    if GATE:
        s *= tl.maximum(gate, 0.0)
    hs = (h * s[:, None]).to(up_weight.dtype.element_ty)

    back = tl.zeros((BLOCK_M, RP), tl.float32)  # g W_up
    to_bias = tl.zeros((BLOCK_M,), tl.float32)  # g · b_up
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        g = _gradient(
            grad, grad_prompt, up_weight, up_bias, hs, s, clouds, start, columns, there, T, C, R, PROMPT, RP, PRECISION
        )
        weight = tl.load(
            up_weight + columns[:, None] * R + ranks[None], (columns < C)[:, None] & (ranks < R)[None], 0.0
        )
        back = tl.dot(g.to(weight.dtype), weight, back, input_precision=PRECISION)
        to_bias += tl.sum(g * tl.load(up_bias + columns, columns < C, 0.0).to(tl.float32)[None], 1)
    dgate = tl.zeros((BLOCK_M,), tl.float32)
    if GATE:
        dgate = tl.where(gate > 0, multiplier * (tl.sum(back * h, 1) + to_bias), 0.0)
    dz = back * s[:, None] * survivors * slope
    small = dz.to(down_weight.dtype.element_ty)

    inner = tl.zeros((BLOCK_M,), tl.float32)  # means of LayerNorm's backward
    outer = tl.zeros((BLOCK_M,), tl.float32)
    if NORM:
        for begin in range(0, C, BLOCK_C):
            columns = begin + tl.arange(0, BLOCK_C)
            there = inside[:, None] & (columns < C)[None]
            weight = tl.load(
                down_weight + ranks[:, None] * C + columns[None], (ranks < R)[:, None] & (columns < C)[None], 0.0
            )
            du = tl.dot(small, weight, input_precision=PRECISION)
            if GATE:
                du += dgate[:, None] * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None]
            _, normal = _input(x, norm_weight, norm_bias, start, columns, there, C, mean, rstd, NORM)
            dn = du * tl.load(norm_weight + columns, columns < C, 0.0).to(tl.float32)[None]
            inner += tl.sum(dn, 1)
            outer += tl.sum(dn * normal, 1)
        inner /= C
        outer /= C
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        weight = tl.load(
            down_weight + ranks[:, None] * C + columns[None], (ranks < R)[:, None] & (columns < C)[None], 0.0
        )
        du = tl.dot(small, weight, input_precision=PRECISION)
        if GATE:
            du += dgate[:, None] * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None]
        if NORM:
            _, normal = _input(x, norm_weight, norm_bias, start, columns, there, C, mean, rstd, NORM)
            dn = du * tl.load(norm_weight + columns, columns < C, 0.0).to(tl.float32)[None]
            du = rstd[:, None] * (dn - inner[:, None] - normal * outer[:, None])
        tl.store(grad_x + start[:, None] + columns[None], du.to(grad_x.dtype.element_ty), there)

    narrow = inside[:, None] & (ranks < R)[None]
    tl.store(out_hs + tokens[:, None] * R + ranks[None], hs, narrow)
    tl.store(out_dz + tokens[:, None] * R + ranks[None], small, narrow)
    tl.store(out_rows + tokens * 4, mean, inside)
    tl.store(out_rows + tokens * 4 + 1, rstd, inside)
    tl.store(out_rows + tokens * 4 + 2, s, inside)
    tl.store(out_rows + tokens * 4 + 3, dgate, inside)


_WEIGHT_CONFIGS = [
    ({"BLOCK_M": 32, "BLOCK_C": 64}, 4, 2),
    ({"BLOCK_M": 64, "BLOCK_C": 64}, 8, 2),
    ({"BLOCK_M": 32, "BLOCK_C": 32}, 4, 2),
]


@_triton.kernel(_WEIGHT_CONFIGS, key=["N", "C", "R"])
def _weight_kernel(
    x, norm_weight, norm_bias, gate_weight, down_weight, up_weight, up_bias, grad, grad_prompt, hs, dz, rows_facts,
    up_parts, down_parts, channel_parts, rank_parts, N, T, C, R, per_split,
    NORM: tl.constexpr, GATE: tl.constexpr, PROMPT: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the tokens of all weights' gradients; program (channels, part). Keeps them in registers."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1).to(tl.int64)
    ranks = tl.arange(0, RP)
    column_there = columns < C
    weight_there = column_there[:, None] & (ranks < R)[None]
    d_up = tl.zeros((BLOCK_C, RP), tl.float32)
    d_down = tl.zeros((BLOCK_C, RP), tl.float32)
    d_up_bias = tl.zeros((BLOCK_C,), tl.float32)
    d_norm_weight = tl.zeros((BLOCK_C,), tl.float32)
    d_norm_bias = tl.zeros((BLOCK_C,), tl.float32)
    d_gate = tl.zeros((BLOCK_C,), tl.float32)
    d_down_bias = tl.zeros((RP,), tl.float32)
    d_gate_bias = tl.zeros((BLOCK_M,), tl.float32)
    down = tl.load(down_weight + ranks[:, None] * C + columns[None], (ranks < R)[:, None] & column_there[None], 0.0)
    last = tl.minimum((split + 1) * per_split, N)
    for begin in range(0, per_split, BLOCK_M):
        tokens = split * per_split + begin + tl.arange(0, BLOCK_M)
        inside = (tokens < last) & (begin + tl.arange(0, BLOCK_M) < per_split)
        start = tokens * C
        there = inside[:, None] & column_there[None]
        narrow = inside[:, None] & (ranks < R)[None]
        mean = tl.load(rows_facts + tokens * 4, inside, 0.0)
        rstd = tl.load(rows_facts + tokens * 4 + 1, inside, 0.0)
        s = tl.load(rows_facts + tokens * 4 + 2, inside, 0.0)
        dgate = tl.load(rows_facts + tokens * 4 + 3, inside, 0.0)
        scaled = tl.load(hs + tokens[:, None] * R + ranks[None], narrow, 0.0)
        slopes = tl.load(dz + tokens[:, None] * R + ranks[None], narrow, 0.0)
        g = _gradient(
            grad, grad_prompt, up_weight, up_bias, scaled, s, tokens // T, start, columns, there, T, C, R, PROMPT, RP,
            PRECISION,
        )  # fmt: skip
        g = tl.where(there, g, 0.0)
        u, normal = _input(x, norm_weight, norm_bias, start, columns, there, C, mean, rstd, NORM)
        d_up = tl.dot(tl.trans(g.to(scaled.dtype)), scaled, d_up, input_precision=PRECISION)
        d_down = tl.dot(tl.trans(u.to(slopes.dtype)), slopes, d_down, input_precision=PRECISION)
        d_up_bias += tl.sum(g * s[:, None], 0)
        d_down_bias += tl.sum(slopes.to(tl.float32), 0)
        if GATE:
            d_gate += tl.sum(u * dgate[:, None], 0)
            d_gate_bias += dgate
        if NORM:
            du = tl.dot(slopes, down, input_precision=PRECISION)
            if GATE:
                du += dgate[:, None] * tl.load(gate_weight + columns, column_there, 0.0).to(tl.float32)[None]
            d_norm_weight += tl.sum(du * normal, 0)
            d_norm_bias += tl.sum(tl.where(there, du, 0.0), 0)
    place = split * C * R + columns[:, None] * R + ranks[None]
    tl.store(up_parts + place, d_up, weight_there)
    tl.store(down_parts + place, d_down, weight_there)
    tl.store(channel_parts + (split * 4) * C + columns, d_up_bias, column_there)
    tl.store(channel_parts + (split * 4 + 1) * C + columns, d_norm_weight, column_there)
    tl.store(channel_parts + (split * 4 + 2) * C + columns, d_norm_bias, column_there)
    tl.store(channel_parts + (split * 4 + 3) * C + columns, d_gate, column_there)
    if tl.program_id(0) == 0:
        tl.store(rank_parts + split * (R + 1) + ranks, d_down_bias, ranks < R)
        tl.store(rank_parts + split * (R + 1) + R, tl.sum(d_gate_bias, 0))


def _launch(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
    x = x.contiguous()
    batch, t, c = x.shape
    r = dw.shape[0]
    out = torch.empty_like(x)
    parts = -(-t // PROMPT_ROWS)
    partial = x.new_empty((batch, parts, c) if with_prompt else (0,), dtype=torch.float32)
    if x.numel():
        _forward_kernel.launch(
            lambda meta: (batch, -(-t // meta["BLOCK_M"])),
            x, *_pointers(x, nw, nb, gw, gb, dw, db, uw, ub, seed), out, partial, t, c, r,
            float(eps), float(multiplier), float(dropout_p),
            PROMPT=with_prompt, **_constants(x, nw, gw, seed, r, relu),
        )  # fmt: skip
    prompt = (partial.sum(1) / t).to(x.dtype) if with_prompt else x.new_empty(0)
    return out, prompt


def _launch_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu):
    x, grad = x.contiguous(), grad.contiguous()
    batch, t, c = x.shape
    r, n = dw.shape[0], batch * t
    grad_x = torch.empty_like(x)
    hs, dz = x.new_empty(n, r), x.new_empty(n, r)
    facts = x.new_empty(n, 4, dtype=torch.float32)
    splits = max(1, min(SPLITS, -(-n // 16)))
    per_split = -(-n // splits)
    sizes = [(splits, c, r), (splits, c, r), (splits, 4, c), (splits, r + 1)]
    up_parts, down_parts, channel_parts, rank_parts = (x.new_zeros(s, dtype=torch.float32) for s in sizes)
    if x.numel():
        pointers = _pointers(x, nw, nb, gw, gb, dw, db, uw, ub, seed)
        prompt = grad if grad_prompt is None else grad_prompt.contiguous()
        constants = _constants(x, nw, gw, seed, r, relu) | {"PROMPT": grad_prompt is not None}
        _backward_kernel.launch(
            lambda meta: (batch, -(-t // meta["BLOCK_M"])),
            x, *pointers, grad, prompt, grad_x, hs, dz, facts, t, c, r, float(eps), float(multiplier), float(dropout_p),
            **constants,
        )  # fmt: skip
        constants = {name: constants[name] for name in ("NORM", "GATE", "PROMPT", "RP", "PRECISION")}
        nw_, nb_, gw_, _, dw_, _, uw_, ub_, _ = pointers
        _weight_kernel.launch(
            lambda meta: (-(-c // meta["BLOCK_C"]), splits),
            x, nw_, nb_, gw_, dw_, uw_, ub_, grad, prompt, hs, dz, facts, up_parts, down_parts, channel_parts,
            rank_parts, n, t, c, r, per_split, **constants,
        )  # fmt: skip
    d_ub, d_nw, d_nb, d_gw = channel_parts.sum(0).to(x.dtype)
    ranks = rank_parts.sum(0).to(x.dtype)
    d_dw = down_parts.sum(0).t().to(x.dtype, memory_format=torch.contiguous_format)
    none = x.new_empty(0)
    norm = (none, none) if nw is None else (d_nw.clone(), d_nb.clone())
    gate = (none, none) if gw is None else (d_gw.view(1, c).clone(), ranks[r:].clone())
    return grad_x, *norm, *gate, d_dw, ranks[:r].clone(), up_parts.sum(0).to(x.dtype), d_ub.clone()


def _pointers(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Contiguous; what is not there is never read, so any pointer does."""
    return [x if tensor is None else tensor.contiguous() for tensor in tensors]


def _constants(x: Tensor, nw: Any, gw: Any, seed: Any, rank: int, relu: bool) -> dict[str, Any]:
    return {
        "NORM": nw is not None,
        "GATE": gw is not None,
        "DROPOUT": seed is not None,
        "RELU": relu,
        "RP": _triton.power_of_two(rank),
        "PRECISION": _triton.precision(x.dtype),
    }


def _bottleneck_cpu(x, nw, nb, gw, gb, dw, db, seed, eps, multiplier, dropout_p, relu):
    """U of tokens [N, C], its mean and 1 / deviation, the gate before its ReLU, s, z, and s ⊙ h."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, stats, gate = x, None, None
    if nw is not None:
        u, stats, gate = _rows.norm(x, nw, nb, gw, eps)
    elif gw is not None:
        gate = torch.mv(u, gw[0]).to(wide)
    if gw is None:
        gate, s = None, x.new_full((x.shape[0],), multiplier, dtype=wide)
    else:
        gate += gb
        s = gate.relu().mul_(multiplier)
    z = _matmul.linear(u, dw, db)
    return u, stats, gate, s, z, _rows.hidden(z, s, seed, dropout_p, relu)


def _cpu(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu, with_prompt):
    shape = x.shape
    x = _rows.packed(x.reshape(-1, shape[-1]))
    *_, s, _, hs = _bottleneck_cpu(x, nw, nb, gw, gb, dw, db, seed, eps, multiplier, dropout_p, relu)
    a = _matmul.linear(hs, uw)
    prompt = _rows.output(a, ub, s, shape[0] if with_prompt else 0)
    return a.view(shape), prompt if with_prompt else x.new_empty(0)


def _cpu_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, multiplier, dropout_p, relu):
    shape = x.shape
    x, grad = (_rows.packed(t.reshape(-1, shape[-1])) for t in (x, grad))
    weights = (nw, nb, gw, gb, dw, db)
    u, stats, gate, s, z, hs = _bottleneck_cpu(x, *weights, seed, eps, multiplier, dropout_p, relu)
    g = grad
    if grad_prompt is not None:
        g = _matmul.linear(hs, uw)
    d_ub, to_bias = _rows.gradient(grad, grad_prompt, g, ub, s)
    back = _matmul.linear(g, uw.t())  # [N, R]
    d_uw = torch.mm(g.t(), hs)
    dz, d_db, dgate = _rows.hidden_backward(back, z, s, seed, dropout_p, relu)
    d_dw = torch.mm(dz.t(), u)
    du = _matmul.linear(dz, dw.t())
    d_gw = d_gb = d_nw = d_nb = none = x.new_empty(0)
    if gate is not None:
        dgate = torch.where(gate > 0, (dgate + to_bias) * multiplier, 0)
        d_gb = dgate.sum()[None]
    if nw is not None and stats is not None:
        du, (d_nw, d_nb, d_unit) = _rows.norm_backward(du, x, stats, nw, gw, dgate if gate is not None else None)
        if gate is not None:  # u = weight ⊙ x̂ + bias
            d_gw = torch.addcmul(d_gb * nb, d_unit, nw)[None]
    elif gate is not None:
        du.addr_(dgate.to(du.dtype), gw[0])
        d_gw = torch.mv(u.t(), dgate.to(u.dtype))[None]
    grads = (d_nw, d_nb, d_gw, d_gb, d_dw, d_db, d_uw, d_ub)
    return du.view(shape), *(none.clone() if t is none else t.to(x.dtype) for t in grads)


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
_op = _library.define(f"adapter({_WEIGHTS}, bool with_prompt) -> (Tensor, Tensor)", cpu=_cpu, cuda=_launch, fake=_fake)
_backward_op = _library.define(
    f"adapter_backward(Tensor grad, Tensor? grad_prompt, {_WEIGHTS}) -> ({', '.join(['Tensor'] * 9)})",
    cpu=_cpu_backward,
    cuda=_launch_backward,
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
    @torch.autograd.function.once_differentiable
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
    return _dropout.fresh_seed(x.device) if seed is None else seed
