"""`torch_cluster`: fps, knn, radius and their graphs.

Clouds lie end to end, and a sorted batch vector tells them apart.
"""

import torch
from torch import Tensor

from pointpeft import ops
from pointpeft.compat._search import farthest, first_within


def _sizes(x: Tensor, batch: Tensor | None, batch_size: int | None = None) -> Tensor:
    """Points in each cloud. [B]"""
    if batch is None:
        return torch.tensor([x.shape[0]], device=x.device)
    return torch.bincount(batch, minlength=batch_size or 0)


def _clouds(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) if x.dim() == 1 else x


def fps(
    src: Tensor,
    batch: Tensor | None = None,
    ratio: float | Tensor | None = None,
    random_start: bool = True,
    batch_size: int | None = None,
    ptr: Tensor | list[int] | None = None,
) -> Tensor:
    """Indices into `src` (N, D) of ceil(ratio x size) farthest points of each cloud, cloud by cloud; ratio 0.5 if None.

    The product is rounded in the dtype of `src`, as there: 0.2 of 10 points are 2.
    """
    src = _clouds(src)
    if ptr is not None:
        sizes = torch.as_tensor(ptr, device=src.device).diff()
    else:
        sizes = _sizes(src, batch, batch_size)
    share = torch.as_tensor(0.5 if ratio is None else ratio, dtype=src.dtype, device=src.device)
    counts = (sizes.to(src.dtype) * share).ceil().long().tolist()
    picks, offset = [], 0
    for size, count in zip(sizes.tolist(), counts, strict=True):
        if count > size:
            raise ValueError(f"ratio must be at most 1, got {ratio}")
        if count:
            start = int(torch.randint(size, ())) if random_start else 0
            picks.append(farthest(src[offset : offset + size].unsqueeze(0), count, start)[0] + offset)
        offset += size
    return torch.cat(picks) if picks else torch.empty(0, dtype=torch.int64, device=src.device)


def knn(
    x: Tensor,
    y: Tensor,
    k: int,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Pairs (2, E): row 0 indexes `y`, row 1 its k nearest in `x` (fewer where a cloud has fewer), nearest first."""
    x, y = _clouds(x), _clouds(y)
    if cosine:
        x, y = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1)
    clouds = max(len(_sizes(x, batch_x, batch_size)), len(_sizes(y, batch_y, batch_size)))
    sizes_x, sizes_y = (_sizes(points, batch, clouds).tolist() for points, batch in ((x, batch_x), (y, batch_y)))
    pairs, at_x, at_y = [], 0, 0
    for size_x, size_y in zip(sizes_x, sizes_y, strict=True):
        if size_x and size_y:
            count = min(k, size_x)
            query, support = y[at_y : at_y + size_y].detach(), x[at_x : at_x + size_x].detach()
            idx = ops.knn(query.unsqueeze(0), support.unsqueeze(0), count)[1][0]
            rows = torch.arange(at_y, at_y + size_y, device=x.device).repeat_interleave(count)
            pairs.append(torch.stack([rows, idx.flatten() + at_x]))
        at_x, at_y = at_x + size_x, at_y + size_y
    return torch.cat(pairs, 1) if pairs else torch.empty(2, 0, dtype=torch.int64, device=x.device)


def knn_graph(
    x: Tensor,
    k: int,
    batch: Tensor | None = None,
    loop: bool = False,
    flow: str = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges (2, E) from each point's k nearest to it (`source_to_target`) or from it to them."""
    _check_flow(flow)
    target, source = knn(x, x, k if loop else k + 1, batch, batch, cosine, num_workers, batch_size)
    if not loop:
        keep = target != source
        target, source = target[keep], source[keep]
    return torch.stack([source, target] if flow == "source_to_target" else [target, source])


def radius(
    x: Tensor,
    y: Tensor,
    r: float,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    max_num_neighbors: int = 32,
    num_workers: int = 1,
    batch_size: int | None = None,
    ignore_same_index: bool = False,
) -> Tensor:
    """Pairs (2, E): row 0 indexes `y`, row 1 the points of `x` within `r`, the first `max_num_neighbors` by index."""
    x, y = _clouds(x), _clouds(y)
    clouds = max(len(_sizes(x, batch_x, batch_size)), len(_sizes(y, batch_y, batch_size)))
    sizes_x, sizes_y = (_sizes(points, batch, clouds).tolist() for points, batch in ((x, batch_x), (y, batch_y)))
    pairs, at_x, at_y = [], 0, 0
    for size_x, size_y in zip(sizes_x, sizes_y, strict=True):
        if size_x and size_y:
            query, support = y[at_y : at_y + size_y], x[at_x : at_x + size_x]
            # One more, in case that the point of the same index is to be left out.
            idx, is_within = first_within(query[None], support[None], r, min(max_num_neighbors + 1, size_x))
            idx, is_within = idx[0] + at_x, is_within[0]
            if ignore_same_index:
                is_within = is_within & (idx != torch.arange(at_y, at_y + size_y, device=x.device)[:, None])
            is_within = is_within & (is_within.cumsum(1) <= max_num_neighbors)
            rows, columns = is_within.nonzero(as_tuple=True)
            pairs.append(torch.stack([rows + at_y, idx[rows, columns]]))
        at_x, at_y = at_x + size_x, at_y + size_y
    return torch.cat(pairs, 1) if pairs else torch.empty(2, 0, dtype=torch.int64, device=x.device)


def radius_graph(
    x: Tensor,
    r: float,
    batch: Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int = 32,
    flow: str = "source_to_target",
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges (2, E) from the points within `r` of each point to it (`source_to_target`) or from it to them."""
    _check_flow(flow)
    target, source = radius(x, x, r, batch, batch, max_num_neighbors, num_workers, batch_size, not loop)
    return torch.stack([source, target] if flow == "source_to_target" else [target, source])


def _check_flow(flow: str) -> None:
    if flow not in ("source_to_target", "target_to_source"):
        raise ValueError(f"flow must be source_to_target or target_to_source, got {flow!r}")
