"""The adapter on a GPU: the formulas of `_adapter` in three Triton kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pointpeft.ops.core import triton_launch
from pointpeft.ops.core.dropout import kept
from pointpeft.ops.core.triton_math import gelu, gelu_slope, relu
from pointpeft.ops.frozen import _adapter_composed

if TYPE_CHECKING:
    import triton.language as tl

PROMPT_ROWS = 16  # tokens whose GELU(a) one row of partial sums holds; the least BLOCK_M
MAX_RANK = 256  # whose bottleneck a program holds in registers; beyond it PyTorch's operations answer
MAX_RANK_FLOAT32 = 64
MAX_RANK_SUMS = 128  # for which a program holds sums of the weights' gradients; beyond it PyTorch multiplies
SPLITS = 24  # parts of the tokens that the weights' gradients are summed over, each by its own program

# A program of the forward and of the first backward kernel owns BLOCK_M tokens of one cloud and walks their C
# channels in steps of BLOCK_C, several times: after the first time they come from L1. The bottleneck (BLOCK_M x R)
# stays in registers. Weights (2 C R) come from L2. No barrier, no atomic: results do not depend on the schedule.


@triton_launch.device_function
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


@triton_launch.device_function
def _normal(x, start, columns, there, mean, rstd):
    """The normalised x of a block of channels; 0 outside. [BLOCK_M, BLOCK_C]"""
    value = tl.load(x + start[:, None] + columns[None], there, 0.0).to(tl.float32)
    return tl.where(there, (value - mean[:, None]) * rstd[:, None], 0.0)


@triton_launch.device_function
def _input(normal, norm_weight, norm_bias, columns, there, C):
    """The input u from the normalised x; 0 outside. [BLOCK_M, BLOCK_C]"""
    weight = tl.load(norm_weight + columns, columns < C, 0.0).to(tl.float32)
    bias = tl.load(norm_bias + columns, columns < C, 0.0).to(tl.float32)
    return tl.where(there, normal * weight[None] + bias[None], 0.0)


@triton_launch.device_function
def _bottleneck(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
    RP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Bottleneck z [BLOCK_M, RP] and the gate before its ReLU [BLOCK_M]."""
    ranks = tl.arange(0, RP)
    z = tl.zeros((BLOCK_M, RP), tl.float32)
    gate = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        normal = _normal(x, start, columns, there, mean, rstd)
        u = _input(normal, norm_weight, norm_bias, columns, there, C)
        gate += tl.sum(u * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None], 1)
        weight = tl.load(
            down_weight + ranks[None] * C + columns[:, None], (ranks < R)[None] & (columns < C)[:, None], 0.0
        )
        z = tl.dot(u.to(weight.dtype), weight, z, input_precision=PRECISION)
    z += tl.load(down_bias + ranks, ranks < R, 0.0).to(tl.float32)[None]
    gate += tl.load(gate_bias).to(tl.float32)
    return z, gate


@triton_launch.device_function
def _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr, RP: tl.constexpr):
    """What dropout multiplies h with. [BLOCK_M, RP]"""
    if DROPOUT:
        keep = kept(seed, tokens[:, None] * R + ranks[None], dropout_p)
        return tl.where(keep, 1.0 / (1.0 - dropout_p), 0.0)
    else:
        return tl.full((BLOCK_M, RP), 1.0, tl.float32)


def _fits_registers(of: dict[str, Any]) -> bool:
    """At rank 64 two programs' worth of tokens fit in short types (sm_90: 244 registers, none spilled); in float32,
    where a block of weights is there as two TF32 terms, 16 tokens and 32 channels do: 32 tokens spill 320 bytes,
    64 channels up to 192 in the backward kernel with a prompt (sm_80).
    """
    if of["PRECISION"] == "ieee":
        return of["BLOCK_C"] == 64 and of["BLOCK_M"] * of["RP"] <= 512 * of["warps"]
    return of["BLOCK_C"] == 32


_CONFIGS = [
    ({"BLOCK_M": 16, "BLOCK_C": 64}, 4, 2),
    ({"BLOCK_M": 32, "BLOCK_C": 64}, 4, 2),
    ({"BLOCK_M": 16, "BLOCK_C": 64}, 8, 2),
    ({"BLOCK_M": 32, "BLOCK_C": 64}, 8, 2),
    ({"BLOCK_M": 16, "BLOCK_C": 32}, 4, 2),
    ({"BLOCK_M": 16, "BLOCK_C": 32}, 8, 2),
]


@triton_launch.kernel(_CONFIGS, key=["bucket", "C", "R"], suits=_fits_registers)
def _forward_kernel(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, up_weight, up_bias, seed, out, partial,
    T, bucket, C, R, eps, dropout_p,
    DROPOUT: tl.constexpr, PROMPT: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """a, and sums of GELU(a) over 16 tokens each; program (cloud, tokens). Moves 2 T C values and 2 C R weights."""
    blocks = tl.cdiv(T, BLOCK_M)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < T
    tokens = cloud * T + rows
    start = tokens * C
    ranks = tl.arange(0, RP)
    mean, rstd = _row_statistics(x, start, inside, C, eps, BLOCK_M, BLOCK_C)
    z, gate = _bottleneck(
        x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
        RP, PRECISION, BLOCK_M, BLOCK_C,
    )  # fmt: skip
    h = gelu(z)
    h *= _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT, BLOCK_M, RP)
    s = relu(gate)
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
            sums = tl.sum(tl.reshape(tl.where(there, gelu(a), 0.0), (BLOCK_M // 16, 16, BLOCK_C)), 1)
            parts = block * (BLOCK_M // 16) + tl.arange(0, BLOCK_M // 16)
            num_parts = (T + 15) // 16
            place = partial + (cloud * num_parts + parts[:, None]) * C + columns[None]
            tl.store(place, sums, (parts < num_parts)[:, None] & (columns < C)[None])


@triton_launch.device_function
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
        g += gelu_slope(a) * tl.load(grad_prompt + cloud[:, None] * C + columns[None], there, 0.0).to(tl.float32) / T
    return g


@triton_launch.kernel(_CONFIGS, key=["bucket", "C", "R"], suits=_fits_registers)
def _backward_kernel(
    x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, up_weight, up_bias, seed,
    grad, grad_prompt, grad_x, out_hs, out_dz, out_rows, T, bucket, C, R, eps, dropout_p,
    DROPOUT: tl.constexpr, PROMPT: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Computes the bottleneck again, then the gradient of x; leaves s ⊙ h and the gradient of z (T x R each) and per
    token (mean, 1 / deviation, s, gradient of the gate) for the weights' kernel. Program (cloud, tokens).
    """
    blocks = tl.cdiv(T, BLOCK_M)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < T
    tokens = cloud * T + rows
    clouds = tokens * 0 + cloud
    start = tokens * C
    ranks = tl.arange(0, RP)
    mean, rstd = _row_statistics(x, start, inside, C, eps, BLOCK_M, BLOCK_C)
    z, gate = _bottleneck(
        x, norm_weight, norm_bias, gate_weight, gate_bias, down_weight, down_bias, start, inside, C, R, mean, rstd,
        RP, PRECISION, BLOCK_M, BLOCK_C,
    )  # fmt: skip
    h = gelu(z)
    slope = gelu_slope(z)
    survivors = _survivors(seed, tokens, ranks, R, dropout_p, DROPOUT, BLOCK_M, RP)
    h *= survivors
    s = relu(gate)
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
    dgate = tl.where(gate <= 0, 0.0, tl.sum(back * h, 1) + to_bias)
    dz = back * s[:, None] * survivors * slope
    small = dz.to(down_weight.dtype.element_ty)

    inner = tl.zeros((BLOCK_M,), tl.float32)  # means of LayerNorm's backward
    outer = tl.zeros((BLOCK_M,), tl.float32)
    for begin in range(0, C, BLOCK_C):
        columns = begin + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (columns < C)[None]
        weight = tl.load(
            down_weight + ranks[:, None] * C + columns[None], (ranks < R)[:, None] & (columns < C)[None], 0.0
        )
        du = tl.dot(small, weight, input_precision=PRECISION)
        du += dgate[:, None] * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None]
        normal = _normal(x, start, columns, there, mean, rstd)
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
        du += dgate[:, None] * tl.load(gate_weight + columns, columns < C, 0.0).to(tl.float32)[None]
        normal = _normal(x, start, columns, there, mean, rstd)
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


def _sums_fit_registers(of: dict[str, Any]) -> bool:
    """A thread holds at most 16 values of each of the two sums, and 8 of each bottleneck that it reads: with four warps
    in the place of eight at rank 64 the kernel spills 192 bytes (sm_90).
    """
    return of["BLOCK_C"] * of["RP"] <= 512 * of["warps"] and of["BLOCK_M"] * of["RP"] <= 256 * of["warps"]


_WEIGHT_CONFIGS = [
    ({"BLOCK_M": 32, "BLOCK_C": 64}, 8, 2),
    ({"BLOCK_M": 32, "BLOCK_C": 32}, 4, 2),
    ({"BLOCK_M": 16, "BLOCK_C": 32}, 8, 2),
]


@triton_launch.kernel(_WEIGHT_CONFIGS, key=["C", "R"], suits=_sums_fit_registers)
def _weight_kernel(
    x, norm_weight, norm_bias, gate_weight, down_weight, up_weight, up_bias, grad, grad_prompt, hs, dz, rows_facts,
    up_parts, down_parts, channel_parts, rank_parts, N, T, C, R, per_split,
    PROMPT: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
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
        normal = _normal(x, start, columns, there, mean, rstd)
        u = _input(normal, norm_weight, norm_bias, columns, there, C)
        d_up = tl.dot(tl.trans(g.to(scaled.dtype)), scaled, d_up, input_precision=PRECISION)
        d_down = tl.dot(tl.trans(u.to(slopes.dtype)), slopes, d_down, input_precision=PRECISION)
        d_up_bias += tl.sum(g * s[:, None], 0)
        d_down_bias += tl.sum(slopes.to(tl.float32), 0)
        d_gate += tl.sum(u * dgate[:, None], 0)
        d_gate_bias += dgate
        du = tl.dot(slopes, down, input_precision=PRECISION)
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


def launch(x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p, with_prompt):
    """The forward pass on x [B, T, C]: a, and the prompt [B, C] or nothing. `nw` to `ub`: `AdapterWeights`."""
    x = x.contiguous()
    batch, t, c = x.shape
    r = dw.shape[0]
    out = torch.empty_like(x)
    parts = -(-t // PROMPT_ROWS)
    partial = x.new_empty((batch, parts, c) if with_prompt else (0,), dtype=torch.float32)
    if x.numel():
        _forward_kernel.launch(
            lambda meta: (batch * -(-t // meta["BLOCK_M"]),),
            x, *_pointers(x, nw, nb, gw, gb, dw, db, uw, ub, seed), out, partial,
            t, triton_launch.power_of_two(t), c, r, float(eps), float(dropout_p),
            PROMPT=with_prompt, **_constants(x, seed, r),
        )  # fmt: skip
    prompt = (partial.sum(1) / t).to(x.dtype) if with_prompt else x.new_empty(0)
    return out, prompt


def launch_backward(grad, grad_prompt, x, nw, nb, gw, gb, dw, db, uw, ub, seed, eps, dropout_p):
    """Gradients of x and of the eight weights."""
    x, grad = x.contiguous(), grad.contiguous()
    batch, t, c = x.shape
    r, n = dw.shape[0], batch * t
    grad_x = torch.empty_like(x)
    hs, dz = x.new_empty(n, r), x.new_empty(n, r)
    facts = x.new_empty(n, 4, dtype=torch.float32)
    prompt = grad if grad_prompt is None else grad_prompt.contiguous()
    pointers = _pointers(x, nw, nb, gw, gb, dw, db, uw, ub, seed)
    constants = _constants(x, seed, r) | {"PROMPT": grad_prompt is not None}
    if x.numel():
        _backward_kernel.launch(
            lambda meta: (batch * -(-t // meta["BLOCK_M"]),),
            x, *pointers, grad, prompt, grad_x, hs, dz, facts, t, triton_launch.power_of_two(t), c, r,
            float(eps), float(dropout_p), **constants,
        )  # fmt: skip
    weights = (nw, nb, gw, gb, dw, db, uw, ub)
    if x.dtype == torch.float32 or r > MAX_RANK_SUMS:
        return grad_x, *_adapter_composed.weight_gradients(grad, grad_prompt, x, weights, hs, dz, facts)
    return grad_x, *_weight_gradients(grad, prompt, x, weights, pointers, constants, hs, dz, facts)


def _weight_gradients(grad, prompt, x, weights, pointers, constants, hs, dz, facts):
    """Gradients of the eight weights, summed by a kernel over parts of the tokens, then over the parts."""
    dw = weights[4]
    batch, t, c = x.shape
    r, n = dw.shape[0], batch * t
    splits = max(1, min(SPLITS, -(-n // 16)))
    sizes = [(splits, c, r), (splits, c, r), (splits, 4, c), (splits, r + 1)]
    up_parts, down_parts, channel_parts, rank_parts = (x.new_zeros(s, dtype=torch.float32) for s in sizes)
    if x.numel():
        constants = {name: constants[name] for name in ("PROMPT", "RP", "PRECISION")}
        nw_, nb_, gw_, _, dw_, _, uw_, ub_, _ = pointers
        _weight_kernel.launch(
            lambda meta: (-(-c // meta["BLOCK_C"]), splits),
            x, nw_, nb_, gw_, dw_, uw_, ub_, grad, prompt, hs, dz, facts, up_parts, down_parts, channel_parts,
            rank_parts, n, t, c, r, -(-n // splits), **constants,
        )  # fmt: skip
    d_ub, d_nw, d_nb, d_gw = channel_parts.sum(0).to(x.dtype)
    ranks = rank_parts.sum(0).to(x.dtype)
    d_dw = down_parts.sum(0).t().to(x.dtype, memory_format=torch.contiguous_format)
    norm, gate = (d_nw.clone(), d_nb.clone()), (d_gw.view(1, c).clone(), ranks[r:].clone())
    return *norm, *gate, d_dw, ranks[:r].clone(), up_parts.sum(0).to(x.dtype), d_ub.clone()


def _pointers(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Contiguous; a seed that is not there is never read, so any pointer does."""
    return [x if tensor is None else tensor.contiguous() for tensor in tensors]


def _constants(x: Tensor, seed: Tensor | None, rank: int) -> dict[str, Any]:
    return {
        "DROPOUT": seed is not None,
        "RP": triton_launch.power_of_two(rank),
        "PRECISION": triton_launch.precision(x.dtype),
    }
