"""`torch_scatter`: sums, means, products, extremes and softmax over groups of entries, by index or by segment."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = [
    "gather_coo",
    "gather_csr",
    "scatter",
    "scatter_add",
    "scatter_log_softmax",
    "scatter_logsumexp",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_mul",
    "scatter_softmax",
    "scatter_std",
    "scatter_sum",
    "segment_add_coo",
    "segment_add_csr",
    "segment_coo",
    "segment_csr",
    "segment_max_coo",
    "segment_max_csr",
    "segment_mean_coo",
    "segment_mean_csr",
    "segment_min_coo",
    "segment_min_csr",
    "segment_sum_coo",
    "segment_sum_csr",
]


Function = Callable[..., Tensor | tuple[Tensor, Tensor]]


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """out[index[i]] += src[i] along `dim`; `index` is broadcast to `src`, `out` starts at 0 or is added to in place."""
    dim, index = _broadcast(src, index, dim)
    if out is None:
        out = src.new_zeros(_sizes(src, index, dim, dim_size))
    return out.scatter_add_(dim, index, src)


scatter_add = scatter_sum


def scatter_mul(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """The product of the entries of each group; 1 for a group without any."""
    dim, index = _broadcast(src, index, dim)
    if out is None:
        return src.new_ones(_sizes(src, index, dim, dim_size)).scatter_reduce(dim, index, src, "prod")
    return out.copy_(out.clone().scatter_reduce(dim, index, src, "prod"))


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """The mean of the entries of each group, of integers rounded down; 0 for a group without any."""
    dim, index = _broadcast(src, index, dim)
    out = scatter_sum(src, index, dim, out, dim_size)
    count = torch.zeros_like(out).scatter_add_(dim, index, torch.ones_like(src)).clamp_(min=1)
    return out.div_(count, rounding_mode=None if out.is_floating_point() else "floor")


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The least entry of each group, and where it is first along `dim`: 0 and src.size(dim) for a group without any."""
    dim, index = _broadcast(src, index, dim)
    return _extreme(src, index, dim, out, _sizes(src, index, dim, dim_size), largest=False)


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The largest entry of each group, and where it is first along `dim`; as `scatter_min`."""
    dim, index = _broadcast(src, index, dim)
    return _extreme(src, index, dim, out, _sizes(src, index, dim, dim_size), largest=True)


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """The function named `reduce`: sum, add, mul, mean, min or max; of the last two the values alone."""
    functions = {"sum": scatter_sum, "add": scatter_sum, "mul": scatter_mul, "mean": scatter_mean}
    functions |= {"min": scatter_min, "max": scatter_max}
    return _first(_chosen(functions, reduce)(src, index, dim, out, dim_size))


def scatter_std(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    unbiased: bool = True,
) -> Tensor:
    """The standard deviation of each group; 1e-6 is added to the number of entries that it divides by, as there."""
    if out is not None:
        dim_size = out.size(dim)
    dim, index = _broadcast(src, index, dim)
    count = scatter_sum(torch.ones_like(src), index, dim, dim_size=dim_size)
    mean = scatter_sum(src, index, dim, dim_size=dim_size) / count.clamp(min=1)
    squares = (src - mean.gather(dim, index)).square()
    total = scatter_sum(squares, index, dim, out, dim_size)
    divisor = (count - 1 if unbiased else count).clamp(min=1)
    result = (total / (divisor + 1e-6)).sqrt()
    return result if out is None else out.copy_(result)


def scatter_logsumexp(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """The logarithm of Σ exp over each group, with `eps` added to the sum; -inf for a group without any."""
    if out is not None:
        dim_size = out.size(dim)
    dim, index = _broadcast(src, index, dim)
    shifted, largest, is_empty = _shifted(src, index, dim, dim_size)
    total = scatter_sum(shifted.exp(), index, dim, dim_size=dim_size)
    if out is not None:
        total = total + (out - largest).exp()
        is_empty = is_empty & (out == -torch.inf)
    result = ((total + eps).log() + largest).masked_fill(is_empty, -torch.inf)
    return result if out is None else out.copy_(result)


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Softmax over the entries of each group, in the shape of `src`."""
    dim, index = _broadcast(src, index, dim)
    exp = _shifted(src, index, dim, dim_size)[0].exp()
    return exp / scatter_sum(exp, index, dim, dim_size=dim_size).gather(dim, index)


def scatter_log_softmax(
    src: Tensor, index: Tensor, dim: int = -1, eps: float = 1e-12, dim_size: int | None = None
) -> Tensor:
    """Logarithm of the softmax over the entries of each group, with `eps` added to its sum."""
    dim, index = _broadcast(src, index, dim)
    shifted = _shifted(src, index, dim, dim_size)[0]
    return shifted - (scatter_sum(shifted.exp(), index, dim, dim_size=dim_size) + eps).log().gather(dim, index)


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ of src[indptr[i] : indptr[i + 1]] along the last dimension of `indptr`, whose others are those of `src`."""
    index, dim, count = _csr(src, indptr)
    return _into(out, scatter_sum(src, index, dim, None, count + 1).narrow(dim, 0, count))


segment_add_csr = segment_sum_csr


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """The mean of each segment; 0 for an empty one."""
    index, dim, count = _csr(src, indptr)
    return _into(out, scatter_mean(src, index, dim, None, count + 1).narrow(dim, 0, count))


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The least entry of each segment and where it is first; 0 and src.size(dim) for an empty one."""
    index, dim, count = _csr(src, indptr)
    values, places = scatter_min(src, index, dim, None, count + 1)
    return _into(out, values.narrow(dim, 0, count)), places.narrow(dim, 0, count)


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest entry of each segment and where it is first; as `segment_min_csr`."""
    index, dim, count = _csr(src, indptr)
    values, places = scatter_max(src, index, dim, None, count + 1)
    return _into(out, values.narrow(dim, 0, count)), places.narrow(dim, 0, count)


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """The function of segments named `reduce`: sum, add, mean, min or max; of the last two the values alone."""
    functions = {"sum": segment_sum_csr, "add": segment_sum_csr, "mean": segment_mean_csr}
    functions |= {"min": segment_min_csr, "max": segment_max_csr}
    return _first(_chosen(functions, reduce)(src, indptr, out))


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Entry i of `src` repeated indptr[i + 1] - indptr[i] times."""
    indptr = _spread(src, indptr)
    dim = indptr.dim() - 1
    size = int(indptr.flatten()[-1]) if out is None else out.size(dim)
    index, known = _segments(indptr, size)
    shape = [*src.shape[:dim], size, *src.shape[dim + 1 :]]
    index, known = (_trailing(t, len(shape)).expand(shape) for t in (index.clamp(0, src.size(dim) - 1), known))
    return _into(out, src.gather(dim, index).masked_fill(~known, 0))


def segment_sum_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """As `scatter_sum` along the last dimension of a sorted `index`, whose others are those of `src`."""
    return scatter_sum(src, *_coo(src, index), out, dim_size)


segment_add_coo = segment_sum_coo


def segment_mean_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """As `scatter_mean` along the last dimension of a sorted `index`."""
    return scatter_mean(src, *_coo(src, index), out, dim_size)


def segment_min_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """As `scatter_min` along the last dimension of a sorted `index`."""
    return scatter_min(src, *_coo(src, index), out, dim_size)


def segment_max_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """As `scatter_max` along the last dimension of a sorted `index`."""
    return scatter_max(src, *_coo(src, index), out, dim_size)


def segment_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """The function of a sorted index named `reduce`: sum, add, mean, min or max; of the last two the values alone."""
    functions = {"sum": segment_sum_coo, "add": segment_sum_coo, "mean": segment_mean_coo}
    functions |= {"min": segment_min_coo, "max": segment_max_coo}
    return _first(_chosen(functions, reduce)(src, index, out, dim_size))


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """src[index[i]] along the last dimension of a sorted `index`."""
    index = _spread(src, index)
    dim = index.dim() - 1
    index = _trailing(index, src.dim()).expand(*index.shape, *src.shape[dim + 1 :])
    return _into(out, src.gather(dim, index))


def _broadcast(src: Tensor, index: Tensor, dim: int) -> tuple[int, Tensor]:
    """`dim` from the left, and `index` in the shape of `src`: one of one dimension lies along `dim`."""
    dim = dim if dim >= 0 else src.dim() + dim
    if index.dim() == 1:
        index = index.view([1] * dim + [-1])
    return dim, _trailing(index, src.dim()).expand_as(src)


def _trailing(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with dimensions of size 1 behind its own."""
    return tensor[(...,) + (None,) * (dims - tensor.dim())]


def _sizes(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> list[int]:
    """The shape of the result."""
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() else 0
    return [*src.shape[:dim], dim_size, *src.shape[dim + 1 :]]


def _extreme(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, sizes: list[int], largest: bool
) -> tuple[Tensor, Tensor]:
    """Values and their first places; the gradient goes to those places. NaN and the type's own bound never win."""
    limits = torch.finfo(src.dtype) if src.is_floating_point() else torch.iinfo(src.dtype)
    bound, reduce = (limits.min, "amax") if largest else (limits.max, "amin")
    start = src.new_full(sizes, bound) if out is None else out.detach()
    source = src.detach()
    is_better = source > start.gather(dim, index) if largest else source < start.gather(dim, index)
    best = start.scatter_reduce(dim, index, torch.where(is_better, source, start.gather(dim, index)), reduce)
    size = src.size(dim)
    places = _trailing(torch.arange(size, device=src.device), src.dim() - dim).expand_as(src)
    places = torch.where(is_better & (source == best.gather(dim, index)), places, size)
    arg = torch.full(start.shape, size, device=src.device).scatter_reduce(dim, index, places, "amin")
    is_found = arg < size
    if size:
        values = torch.where(is_found, src.gather(dim, arg.clamp(max=size - 1)), 0 if out is None else start)
    else:
        values = torch.zeros_like(start) if out is None else start
    return (values if out is None else out.copy_(values)), arg


def _shifted(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """`src` less the largest of its group, those, and which groups have no entry above -inf."""
    if not src.is_floating_point():
        raise ValueError(f"src must be floating point, got {src.dtype}")
    largest, arg = _extreme(src.detach(), index, dim, None, _sizes(src, index, dim, dim_size), largest=True)
    return src - largest.gather(dim, index), largest, arg == src.size(dim)


def _spread(src: Tensor, index: Tensor) -> Tensor:
    """Leading dimensions of size 1 expanded to those of `src`."""
    if index.dim() > src.dim():
        raise ValueError(f"the index must have at most the {src.dim()} dimensions of src, got {index.dim()}")
    return index.expand(*src.shape[: index.dim() - 1], -1)


def _coo(src: Tensor, index: Tensor) -> tuple[Tensor, int]:
    index = _spread(src, index)
    return _trailing(index, src.dim()).expand_as(src), index.dim() - 1


def _segments(indptr: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The segment that each of `size` places lies in, and whether it lies in one. [..., size]"""
    places = torch.arange(size, device=indptr.device).expand(*indptr.shape[:-1], -1)
    segment = torch.searchsorted(indptr.contiguous(), places.contiguous(), right=True) - 1
    return segment, (segment >= 0) & (segment < indptr.shape[-1] - 1)


def _csr(src: Tensor, indptr: Tensor) -> tuple[Tensor, int, int]:
    """The segment of each entry, its dimension, and the number of segments: what lies in none gets that number."""
    indptr = _spread(src, indptr)
    dim, count = indptr.dim() - 1, indptr.shape[-1] - 1
    segment, known = _segments(indptr, src.size(dim))
    return _trailing(torch.where(known, segment, count), src.dim()).expand_as(src), dim, count


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _chosen(functions: Mapping[str, Function], reduce: str) -> Function:
    if reduce not in functions:
        raise ValueError(f"reduce must be one of {', '.join(functions)}, got {reduce!r}")
    return functions[reduce]


def _first(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
