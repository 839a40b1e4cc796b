"""`knn_cuda`: the module `KNN`, with distances that are not squared."""

from torch import Tensor, nn

from pointpeft import ops


def knn(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and int64 indices (k, M), ascending, of one cloud `ref` (D, N) and its queries (D, M)."""
    distance, idx = KNN(k)(ref.unsqueeze(0), query.unsqueeze(0))
    return distance.squeeze(0), idx.squeeze(0)


class KNN(nn.Module):
    """k nearest of `ref` for each of `query`; `transpose_mode` says that points come as (B, N, D), not (B, D, N)."""

    def __init__(self, k: int, transpose_mode: bool = False):
        super().__init__()
        self.k, self._t = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and int64 indices, ascending: (B, M, k) in transpose mode, otherwise (B, k, M)."""
        if ref.shape[0] != query.shape[0]:
            raise ValueError(f"ref and query must have one batch size, got {ref.shape[0]} and {query.shape[0]}")
        if not self._t:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        sq_distance, idx = ops.knn(query.detach().float(), ref.detach().float(), self.k)
        distance = sq_distance.sqrt()
        return (distance, idx) if self._t else (distance.transpose(1, 2), idx.transpose(1, 2))
