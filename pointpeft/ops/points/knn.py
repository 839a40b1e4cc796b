"""Nearest neighbours."""

import torch
from torch import Tensor

from pointpeft.ops.core import checks, derivatives, library
from pointpeft.ops.points.gather import gather_reference, scatter_rows, take_rows

EXACT_CHANNELS = 16
"""Up to so many channels the squared differences are summed one by one; above, a matrix product gives the distances."""


def knn(query: Tensor, support: Tensor, k: int, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Finds the k nearest support points of each query.

    Concretely, if `idx[b, m, j] == n`, then support point n is the j-th nearest to query m; the distances ascend, and
    of equal ones the lower index comes first. Up to 16 channels a squared distance is the sum of the squared
    differences in channel order, so indices are exact; above, it is
    |q|² - 2 q·s + |s|² clamped at 0, exact to rounding.
    Differentiable in `query` and `support` through the distances.

    Args:
        query: Points to find neighbours of, any strides. [B, M, C]
        support: Points to find them among, in the dtype of `query`. [B, N, C]
        k: K, how many, 1 <= K <= N.
        lengths: Valid support points of each cloud, its first ones, K <= length <= N; None for all N. int32 or
            int64, [B]

    Returns:
        Squared distances, float32, for float64 inputs float64 [B, M, K], and indices into N, int64 [B, M, K].

    Raises:
        ValueError: A wrong shape, dtype, device or value; a non-finite value (on CUDA only under POINTPEFT_CHECK=1;
            otherwise such points come last).
    """
    checks.require_floating("query", query, 3)
    checks.require_floating("support", support, 3)
    checks.require_same_kind("support", support, "query", query)
    if query.shape[0] != support.shape[0] or query.shape[2] != support.shape[2]:
        raise ValueError(
            f"query and support must agree in B and C, got shapes {tuple(query.shape)} and {tuple(support.shape)}"
        )
    if query.shape[2] == 0:
        raise ValueError(f"query must have at least 1 channel, got shape {tuple(query.shape)}")
    checks.require_count("k", k, support.shape[1], "N")
    lengths = checks.require_lengths(lengths, support, "support", k, "k")
    if query.device.type != "cpu" or query.shape[1] == 0:  # the CPU kernel looks by itself, where it has work
        checks.require_finite("query", query)
        checks.require_finite("support", support, lengths)
    if library.use_reference(query):
        return knn_reference(query, support, k, lengths=lengths)
    return library.call(torch.ops.pointpeft.knn.default, query, support, k, lengths)


def knn_reference(query: Tensor, support: Tensor, k: int, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch; arguments and result as in `knn`."""
    checks.require_finite("query", query)
    checks.require_finite("support", support, lengths)
    q, s = (query, support) if query.dtype == torch.float64 else (query.float(), support.float())
    with torch.no_grad():
        distance = _all_distances(q, s)
        if lengths is not None:
            beyond = torch.arange(s.shape[1], device=s.device) >= lengths[:, None, None]
            distance.masked_fill_(beyond, torch.inf)
        sq_distance, idx = distance.sort(dim=-1, stable=True)  # of equal ones the lower index first
    sq_distance, idx = sq_distance[..., :k].contiguous(), idx[..., :k].contiguous()
    if torch.is_grad_enabled() and (q.requires_grad or s.requires_grad):
        sq_distance = (q[:, :, None] - gather_reference(s, idx)).square().sum(-1)
    return sq_distance, idx


def _all_distances(q: Tensor, s: Tensor) -> Tensor:
    if q.shape[2] > EXACT_CHANNELS:
        norms = q.square().sum(-1)[:, :, None] + s.square().sum(-1)[:, None]
        return torch.baddbmm(norms, q, s.transpose(1, 2), alpha=-2).clamp_(min=0)
    distance = torch.zeros(*q.shape[:2], s.shape[1], dtype=q.dtype, device=q.device)
    for c in range(q.shape[2]):
        distance += (q[:, :, None, c] - s[:, None, :, c]).square()
    return distance


@library.register_fake("knn")
def _fake(query, support, k, lengths):
    shape = (query.shape[0], query.shape[1], k)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(shape, dtype=dtype), query.new_empty(shape, dtype=torch.int64)


def _save(ctx, inputs, output):
    query, support, _, _ = inputs
    ctx.save_for_backward(query, support, output[1])


def _backward(ctx, grad, _):
    query, support, idx = ctx.saved_tensors
    to_query = to_support = None
    if grad is not None and any(ctx.needs_input_grad[:2]):
        q, s = query.to(grad.dtype), support.to(grad.dtype)
        offset = 2 * grad[..., None] * (q[:, :, None] - derivatives.call(torch.ops.pointpeft.gather.default, s, idx))
        if ctx.needs_input_grad[0]:
            to_query = offset.sum(2).to(query.dtype)
        if ctx.needs_input_grad[1]:
            to_support = scatter_rows(-offset, idx, s.shape[1]).to(support.dtype)
    return to_query, to_support, None, None


def _formula(inputs, output):
    query, support, *_ = inputs
    sq_distance, idx = output
    q, s = query.to(sq_distance.dtype), support.to(sq_distance.dtype)
    return (q[:, :, None] - take_rows(s, idx)).square().sum(-1), idx


library.register_autograd("knn", _formula, _backward, _save)
library.register_autograd("_knn_one_way", _formula)
