import pytest
import torch

from pointpeft.compat.knn_cuda import KNN, knn


@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_distances_are_not_squared_and_both_layouts_agree(dim, k, device, generator):
    ref = torch.randn(2, 50, dim, generator=generator).to(device)
    query = torch.randn(2, 7, dim, generator=generator).to(device).requires_grad_()
    everything = sum((query[:, :, None, c] - ref[:, None, :, c]).square() for c in range(dim)).detach()
    expected = everything.sort(dim=-1, stable=True)
    distance, idx = KNN(k=k, transpose_mode=True)(ref, query)
    assert idx.dtype == torch.int64
    assert not distance.requires_grad
    assert torch.equal(idx, expected.indices[..., :k])
    torch.testing.assert_close(distance, expected.values[..., :k].sqrt())
    flipped = KNN(k=k)(ref.transpose(1, 2), query.transpose(1, 2))
    assert torch.equal(flipped[0], distance.transpose(1, 2))
    assert torch.equal(flipped[1], idx.transpose(1, 2))
    single = knn(ref[0].T, query[0].T, k)
    assert torch.equal(single[0], distance[0].T)
    assert torch.equal(single[1], idx[0].T)


def test_batches_must_agree():
    with pytest.raises(ValueError, match="ref and query must have one batch size, got 2 and 1"):
        KNN(1, True)(torch.zeros(2, 4, 3), torch.zeros(1, 4, 3))
