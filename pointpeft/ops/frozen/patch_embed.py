"""The mini-PointNet tokenizer with frozen weights, fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library, products, triton_launch
from pointpeft.ops.core import rows as _rows
from pointpeft.ops.core.triton_math import max_over, relu

if TYPE_CHECKING:
    import triton.language as tl

ROWS_PER_CHUNK = 4096  # CPU: points whose intermediates (17 MB in float32 at the published size) are in one place
COMPOSED_ROWS = 32768  # CUDA without the fused kernels: points whose intermediates (170 MB) are in memory at a time
MAX_POINTS = 128  # of a patch that the fused kernels hold
MAX_VALUES = 128 * 128  # of the first layer's output that a program of theirs keeps in registers


class PatchEmbedWeights(NamedTuple):
    """Four point-wise linear maps, any BatchNorm after them folded in (`fold_batch_norm`).

    The third map reads [maximum over the patch of the second's output, the second's output of the point].

    Attributes:
        w1: [H1, 3]
        b1: [H1]
        w2: [H2, H1]
        b2: [H2]
        w3: [H3, 2 * H2]
        b3: [H3]
        w4: [C, H3]
        b4: [C]
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor


# Triton. Rows are points; a program owns GROUPS patches of S points, padded to a power of two, and reads the weights
# from L2. Points of a patch are neighbours in a block, so a maximum over the patch is a reduction inside the program.


@triton_launch.device_function
def _first_layer(
    patches, w1, b1, first_group, num_groups, S, H1, SP: tl.constexpr, GROUPS: tl.constexpr, HP: tl.constexpr
):
    """relu(W1 p + b1) of the program's points. [GROUPS * SP, HP], and which points there are [GROUPS * SP]"""
    rows = tl.arange(0, GROUPS * SP)
    group = first_group + rows // SP
    there = (group < num_groups) & (rows % SP < S)
    point = patches + (group.to(tl.int64) * S + rows % SP) * 3
    columns = tl.arange(0, HP)
    inside = columns < H1
    x = tl.load(point, there, 0.0).to(tl.float32)[:, None]
    y = tl.load(point + 1, there, 0.0).to(tl.float32)[:, None]
    z = tl.load(point + 2, there, 0.0).to(tl.float32)[:, None]
    h = x * tl.load(w1 + columns * 3, inside, 0.0).to(tl.float32)[None]
    h += y * tl.load(w1 + columns * 3 + 1, inside, 0.0).to(tl.float32)[None]
    h += z * tl.load(w1 + columns * 3 + 2, inside, 0.0).to(tl.float32)[None]
    h += tl.load(b1 + columns, inside, 0.0).to(tl.float32)[None]
    return relu(h), there


def _first_layer_fits(of: dict[str, Any]) -> bool:
    """The first layer's output stays in registers: at most 64 values of it a thread, beside as many of a sum."""
    rows = of["GROUPS"] * of["SP"]
    return rows <= 16 * of["warps"] and rows * of["HP"] <= MAX_VALUES // 8 * of["warps"]


def _held(size: int, h1: int) -> bool:
    """Whether a program of the kernels holds a patch."""
    return size <= MAX_POINTS and triton_launch.power_of_two(size) * triton_launch.power_of_two(h1) <= MAX_VALUES


_TOP_CONFIGS = [
    ({"GROUPS": 2, "BLOCK": 64}, 4, 2),
    ({"GROUPS": 4, "BLOCK": 64}, 8, 2),
    ({"GROUPS": 1, "BLOCK": 64}, 4, 2),
    ({"GROUPS": 1, "BLOCK": 64}, 8, 2),
]


@triton_launch.kernel(_TOP_CONFIGS, key=["S", "H1", "H2"], suits=_first_layer_fits)
def _top_kernel(
    patches, w1, b1, w2, top, num_groups, S, H1, H2,
    SP: tl.constexpr, HP: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """top[g] = max over the patch of W2 relu(W1 p + b1). Reads 12 S bytes and writes 4 H2 bytes a patch; no barrier."""
    first = tl.program_id(0) * GROUPS
    h, there = _first_layer(patches, w1, b1, first, num_groups, S, H1, SP, GROUPS, HP)
    h = h.to(w2.dtype.element_ty)
    inner = tl.arange(0, HP)
    groups = first + tl.arange(0, GROUPS)
    for begin in range(0, H2, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        weight = tl.load(w2 + columns[None] * H1 + inner[:, None], (columns < H2)[None] & (inner < H1)[:, None], 0.0)
        x = tl.dot(h, weight, input_precision=PRECISION)  # [GROUPS * SP, BLOCK]
        x = tl.where(there[:, None], x, float("-inf"))
        best = max_over(tl.reshape(x, (GROUPS, SP, BLOCK)), 1)
        inside = (groups < num_groups)[:, None] & (columns < H2)[None]
        tl.store(top + groups[:, None].to(tl.int64) * H2 + columns[None], best.to(top.dtype.element_ty), inside)


_TOKEN_CONFIGS = [
    ({"GROUPS": 2, "BLOCK": 32, "BLOCK_C": 128}, 4, 2),
    ({"GROUPS": 4, "BLOCK": 32, "BLOCK_C": 128}, 8, 2),
    ({"GROUPS": 1, "BLOCK": 32, "BLOCK_C": 128}, 4, 2),
    ({"GROUPS": 1, "BLOCK": 32, "BLOCK_C": 128}, 8, 2),
]


@triton_launch.kernel(_TOKEN_CONFIGS, key=["S", "H1", "H3", "C"], suits=_first_layer_fits)
def _token_kernel(
    patches, w1, b1, a, shift, w4, b4, tokens, num_groups, S, H1, H3, C,
    SP: tl.constexpr, HP: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """tokens[g] = b4 + max over the patch of W4 relu(A relu(W1 p + b1) + shift[g]); program (groups, channels)."""
    first = tl.program_id(0) * GROUPS
    h, there = _first_layer(patches, w1, b1, first, num_groups, S, H1, SP, GROUPS, HP)
    h = h.to(a.dtype.element_ty)
    inner = tl.arange(0, HP)
    groups = first + tl.arange(0, GROUPS)
    rows = tl.arange(0, GROUPS * SP)
    group_of_row = first + rows // SP
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((GROUPS * SP, BLOCK_C), tl.float32)
    for begin in range(0, H3, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < H3
        weight = tl.load(a + columns[None] * H1 + inner[:, None], inside[None] & (inner < H1)[:, None], 0.0)
        y = tl.dot(h, weight, input_precision=PRECISION)  # [GROUPS * SP, BLOCK]
        y += tl.load(
            shift + group_of_row[:, None].to(tl.int64) * H3 + columns[None],
            (group_of_row < num_groups)[:, None] & inside[None],
            0.0,
        ).to(tl.float32)
        y = relu(y).to(w4.dtype.element_ty)
        weight = tl.load(w4 + channels[None] * H3 + columns[:, None], (channels < C)[None] & inside[:, None], 0.0)
        total = tl.dot(y, weight, total, input_precision=PRECISION)  # [GROUPS * SP, BLOCK_C]
    total = tl.where(there[:, None], total, float("-inf"))
    best = max_over(tl.reshape(total, (GROUPS, SP, BLOCK_C)), 1) + tl.load(b4 + channels, channels < C, 0.0).to(
        tl.float32
    )
    inside = (groups < num_groups)[:, None] & (channels < C)[None]
    tl.store(tokens + groups[:, None].to(tl.int64) * C + channels[None], best.to(tokens.dtype.element_ty), inside)


def _launch(patches, w1, b1, w2, b2, w3, b3, w4, b4):
    batch, groups, size, _ = patches.shape
    (h1, h2), (c, h3) = w2.shape[::-1], w4.shape
    patches = patches.contiguous()
    tokens = patches.new_empty(batch, groups, c)
    n = batch * groups
    if n == 0:
        return tokens
    w1, b1, w2, w4, b4 = (t.contiguous() for t in (w1, b1, w2, w4, b4))
    common = {
        "SP": triton_launch.power_of_two(size),
        "HP": triton_launch.power_of_two(h1),
        "PRECISION": triton_launch.precision(patches.dtype),
    }
    top = patches.new_empty(n, h2)
    _top_kernel.launch(lambda meta: (-(-n // meta["GROUPS"]),), patches, w1, b1, w2, top, n, size, h1, h2, **common)
    a, w3g, constant = _second_layer(w2, b2, w3, b3)
    shift = F.linear(top, w3g, constant)
    _token_kernel.launch(
        lambda meta: (-(-n // meta["GROUPS"]), -(-c // meta["BLOCK_C"])),
        patches, w1, b1, a, shift, w4, b4, tokens, n, size, h1, h3, c, **common,
    )  # fmt: skip
    return tokens


def _composed(patches, w1, b1, w2, b2, w3, b3, w4, b4):
    """The same formulas as the kernels', in PyTorch's products of matrices."""
    batch, groups, size, _ = patches.shape
    n, h2, (c, h3) = batch * groups, w2.shape[0], w4.shape
    points = patches.reshape(n, size, 3)
    tokens = points.new_empty(n, c)
    a, w3g, constant = _second_layer(w2, b2, w3, b3)
    step = max(1, COMPOSED_ROWS // size)
    for begin in range(0, n, step):
        h = F.linear(points[begin : begin + step].reshape(-1, 3), w1, b1).relu_()
        top = torch.mm(h, w2.t()).view(-1, size, h2).amax(1)
        y = torch.mm(h, a.t()).view(-1, size, h3)
        y += F.linear(top, w3g, constant)[:, None]
        tokens[begin : begin + step] = torch.mm(y.relu_().view(-1, h3), w4.t()).view(-1, size, c).amax(1)
    tokens += b4
    return tokens.view(batch, groups, c)


def _cuda(*tensors):
    """In float32 PyTorch's products, whose tiles fit into registers as the kernels' would not; else the kernels."""
    patches, w1 = tensors[:2]
    if patches.dtype == torch.float32:
        return _composed(*tensors)
    size, h1 = patches.shape[2], w1.shape[0]
    if not _held(size, h1):
        limit = f"hold patches of {MAX_POINTS} points, and {MAX_VALUES} values of the first layer"
        library.warn_composed(f"patch_embed of {size} points and {h1} hidden channels", limit)
        return _composed(*tensors)
    return _launch(*tensors)


def _second_layer(w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The second and third map have nothing between them but the maximum: with W3 = [W3g, W3p] and `top` the maximum
    without b2, W3 [top + b2, W2 h + b2] + b3 = A h + (W3g top + constant), where the bracket is once per patch.

    Returns:
        A = W3p W2 [H3, H1], W3g [H3, H2], constant [H3]
    """
    h2 = w2.shape[0]
    return w3[:, h2:] @ w2, w3[:, :h2], F.linear(b2, w3[:, :h2] + w3[:, h2:], b3)


def _narrowed(buffer: Tensor, width: int) -> Tensor:
    """Rows of `width` in the memory of wider ones."""
    return buffer.view(-1)[: len(buffer) * width].view(-1, width)


def _cpu(patches, w1, b1, w2, b2, w3, b3, w4, b4):
    batch, groups, size, _ = patches.shape
    n, h2, (c, h3) = batch * groups, w2.shape[0], w4.shape
    points = patches.contiguous().view(n, size, 3)
    tokens = points.new_empty(n, c)
    a, w3g, constant = _second_layer(w2, b2, w3, b3)
    step = max(1, min(n, ROWS_PER_CHUNK // size))
    widths = {"patch_hidden": w1.shape[0], "patch_wide": max(h2, h3), "patch_last": c}
    hidden, wide, last = (_rows.scratch(step * size, width, points.dtype, name) for name, width in widths.items())
    top, shifts = points.new_empty(step, h2), points.new_empty(n, h3)
    w2, a, w4 = (products.prepared(w, step * size, name) for w, name in ((w2, "w2"), (a, "w3"), (w4, "w4")))
    for begin in range(0, n, step):
        part = points[begin : begin + step].reshape(-1, 3)
        rows, end = len(part), min(begin + step, n)
        h, best, shift = hidden[:rows], top[: end - begin], shifts[begin:end]
        _rows.first_layer(part, w1, b1, h)
        _rows.patch_max(products.linear(h, w2, buffer=_narrowed(wide[:rows], h2)), size, best)
        products.linear(best, w3g, constant, out=shift)
        # relu(y + shift) = max(y, -shift) + shift, and W4 takes the last term once per patch: one pass over y, not two.
        y = products.linear(h, a, buffer=_narrowed(wide[:rows], h3))
        _rows.patch_clamp(y, size, shift)
        _rows.patch_max(products.linear(y, w4, buffer=last[:rows]), size, tokens[begin:end])
    tokens += products.linear(shifts, w4.whole, b4)
    return tokens.view(batch, groups, c)


def _fake(patches, w1, b1, w2, b2, w3, b3, w4, b4):
    return patches.new_empty((patches.shape[0], patches.shape[1], w4.shape[0]))


_op = library.define(
    "patch_embed(Tensor patches, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor w4, "
    "Tensor b4) -> Tensor",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
)


def patch_embed(patches: Tensor, weights: PatchEmbedWeights) -> Tensor:
    """Turns each patch of points into a token; no gradient.

    With f = W2 relu(W1 p + b1) + b2 per point and t = max over the patch of f, the token is
    max over the patch of W4 relu(W3 [t, f] + b3) + b4. What W3 makes of t is computed once per patch, and W3's other
    half is multiplied with W2 beforehand: 40 % fewer multiplications than written at the published size.

    Args:
        patches: Points relative to their patch's centre, any strides. [B, G, S, 3]
        weights: The four maps, of the dtype and on the device of `patches`; under autocast all are cast to its type.

    Returns:
        Tokens, contiguous. [B, G, C]

    Raises:
        ValueError: A wrong shape, dtype or device, or S = 0.

    Source: Qi et al., "PointNet", CVPR 2017, as used by Point-BERT (CVPR 2022) and Point-MAE (ECCV 2022).
    """
    patches, weights = _checked(patches, weights)
    derivatives.refuse_gradient("patch_embed", patches, *weights)
    if library.use_fused_reference(patches):
        return patch_embed_reference(patches, weights)
    with torch.no_grad():
        return _op(patches, *weights)


@torch.no_grad()
def patch_embed_reference(patches: Tensor, weights: PatchEmbedWeights) -> Tensor:
    """The definition in plain PyTorch, as published; arguments and result as in `patch_embed`."""
    w1, b1, w2, b2, w3, b3, w4, b4 = weights
    batch, groups, size, _ = patches.shape
    x = patches.reshape(-1, size, 3).transpose(1, 2)  # [BG, 3, S]
    x = F.conv1d(F.relu(F.conv1d(x, w1[..., None], b1)), w2[..., None], b2)  # [BG, H2, S]
    x = torch.cat([x.amax(2, keepdim=True).expand(-1, -1, size), x], 1)
    x = F.conv1d(F.relu(F.conv1d(x, w3[..., None], b3)), w4[..., None], b4)
    return x.amax(2).view(batch, groups, w4.shape[0])


def fold_batch_norm(
    weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear map that equals a linear map with a BatchNorm of fixed statistics after it.

    Args:
        weight: [O, I]
        bias: [O]
        mean: Of the outputs. [O]
        var: Of the outputs, biased. [O]
        gamma: [O]
        beta: [O]
        eps: Added to `var`.
    """
    factor = gamma * torch.rsqrt(var + eps)
    return weight * factor[:, None], (bias - mean) * factor + beta


def _checked(patches: Tensor, weights: PatchEmbedWeights) -> tuple[Tensor, PatchEmbedWeights]:
    checks.require_floating("patches", patches, 4, 3)
    if patches.shape[2] == 0:
        raise ValueError(f"patches must have at least one point each, got shape {tuple(patches.shape)}")
    for name, weight in zip(PatchEmbedWeights._fields, weights, strict=True):
        if not isinstance(weight, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(weight).__name__}")
    patches, *tensors = library.autocast(patches, *weights)
    weights = PatchEmbedWeights(*tensors)
    h1, h2, h3, c = (checks.num_rows(weights[i]) for i in (0, 2, 4, 6))
    for name, width in zip(("w1", "w2", "w3", "w4"), (h1, h2, h3, c), strict=True):
        if width == 0:
            raise ValueError(f"{name} must have at least one row, got shape {tuple(getattr(weights, name).shape)}")
    shapes = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    for name, tensor, shape in zip(PatchEmbedWeights._fields, weights, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        checks.require_same_kind(name, tensor, "patches", patches)
    return patches, weights
