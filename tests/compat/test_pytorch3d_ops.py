import pytest
import torch

from pointpeft.compat.pytorch3d_ops import ball_query, knn_gather, knn_points, masked_gather, sample_farthest_points


def clouds(n, generator, device="cpu", dim=3, scale=1.0):
    return (torch.randn(3, n, dim, generator=generator) * scale).to(device)


def farthest(points, k, start=0):
    """Of one cloud, ties to the lowest index."""
    distance = torch.full((len(points),), torch.inf)
    idx = [start]
    for _ in range(1, min(k, len(points))):
        distance = torch.minimum(distance, (points - points[idx[-1]]).square().sum(-1))
        idx.append(int(distance.argmax()))
    return idx


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [None, [12, 4, 1]])
@pytest.mark.parametrize("k", [1, 6, 20, [3, 6, 2]])
def test_farthest_points_of_ragged_clouds(dim, lengths, k, device, generator):
    points = clouds(12, generator, device, dim)
    valid = lengths or [12] * 3
    wanted = k if isinstance(k, list) else [k] * 3
    sampled, idx = sample_farthest_points(points, lengths and torch.tensor(lengths, device=device), K=k)
    assert sampled.shape == (3, max(wanted), dim)
    for b in range(3):
        expected = farthest(points[b, : valid[b]].cpu(), wanted[b])
        assert idx[b].tolist() == expected + [-1] * (max(wanted) - len(expected))
        assert torch.equal(sampled[b, : len(expected)], points[b, idx[b, : len(expected)]])
        assert (sampled[b, len(expected) :] == 0).all()


def test_a_random_start_is_a_point_of_the_cloud(generator):
    points, lengths = clouds(12, generator), torch.tensor([12, 4, 1])
    torch.manual_seed(0)
    starts = set()
    for _ in range(40):
        idx = sample_farthest_points(points, lengths, K=3, random_start_point=True)[1]
        for b, n in enumerate(lengths.tolist()):
            expected = farthest(points[b, :n], 3, start=int(idx[b, 0]))
            assert idx[b].tolist() == expected + [-1] * (3 - len(expected))
        starts.add(int(idx[1, 0]))
    assert starts == {0, 1, 2, 3}


def test_the_sampled_points_carry_gradients(generator):
    points = clouds(12, generator).requires_grad_()
    sampled, idx = sample_farthest_points(points, torch.tensor([12, 4, 1]), K=6)
    sampled.sum().backward()
    assert points.grad.sum() == 3 * (idx >= 0).sum()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("k", [1, 5, 11, 15])
@pytest.mark.parametrize("offset", [0.0, 1e4])  # queries far from everything must not prefer the padding
def test_neighbours_of_ragged_clouds(norm, ragged, k, offset, device, generator):
    p1, p2 = clouds(9, generator, device) + offset, clouds(11, generator, device)
    m, n = ([9, 3, 1], [11, 4, 2]) if ragged else ([9] * 3, [11] * 3)
    lengths = (torch.tensor(m, device=device), torch.tensor(n, device=device)) if ragged else (None, None)
    found = knn_points(p1, p2, *lengths, norm=norm, K=k, return_nn=True)
    assert found.dists.shape == found.idx.shape == (3, 9, k)
    difference = p1[:, :, None] - p2[:, None]
    parts = difference.square() if norm == 2 else difference.abs()
    distance = parts[..., 0] + parts[..., 1] + parts[..., 2]
    for b in range(3):
        expected = distance[b, : m[b], : n[b]].sort(dim=-1, stable=True)
        here = min(k, n[b])
        assert torch.equal(found.idx[b, : m[b], :here], expected.indices[:, :here])
        torch.testing.assert_close(found.dists[b, : m[b], :here], expected.values[:, :here])
        for out in (found.idx[b], found.dists[b], found.knn[b]):
            assert (out[m[b] :, here:] == 0).all()
            assert (out[:, here:] == 0).all()
        assert (found.idx[b, m[b] :] == 0).all()
        assert (found.dists[b, m[b] :] == 0).all()
        assert torch.equal(found.knn[b, : m[b], :here], p2[b][expected.indices[:, :here]])


@pytest.mark.parametrize("norm", [1, 2])
def test_distances_carry_gradients_that_padding_does_not(norm, generator):
    p1, p2 = clouds(9, generator).requires_grad_(), clouds(11, generator).requires_grad_()
    lengths = torch.tensor([11, 4, 2])
    found = knn_points(p1, p2, None, lengths, norm=norm, K=5)
    rows = torch.arange(3)[:, None, None]
    valid = torch.arange(5) < lengths[:, None, None]
    difference = p1[:, :, None] - p2[rows, found.idx]
    parts = difference.square() if norm == 2 else difference.abs()
    expected = parts.sum(-1).masked_fill(~valid, 0)
    torch.testing.assert_close(found.dists, expected)
    gradients = [torch.autograd.grad(d.square().sum(), [p1, p2]) for d in (found.dists, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (gradients[0][1][1, 4:] == 0).all()


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="norm must be 1 or 2, got 3"):
        knn_points(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), norm=3)


@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("k", "radius"), [(1, 1.0), (3, 1.0), (15, 1.5), (4, 1e-3)])
def test_balls_of_ragged_clouds(dim, ragged, k, radius, device, generator):
    p1, p2 = clouds(9, generator, device, dim), clouds(11, generator, device, dim)
    m, n = ([9, 3, 1], [11, 4, 2]) if ragged else ([9] * 3, [11] * 3)
    lengths = (torch.tensor(m, device=device), torch.tensor(n, device=device)) if ragged else (None, None)
    found = ball_query(p1, p2, *lengths, K=k, radius=radius)
    squared = (p1[:, :, None] - p2[:, None]).square().sum(-1)
    for b in range(3):
        for i in range(9):
            inside = (squared[b, i, : n[b]] < radius**2).nonzero().flatten()[:k].tolist() if i < m[b] else []
            assert found.idx[b, i].tolist() == inside + [-1] * (k - len(inside))
            torch.testing.assert_close(found.dists[b, i, : len(inside)], squared[b, i, inside])
            assert torch.equal(found.knn[b, i, : len(inside)], p2[b, inside])
            assert (found.dists[b, i, len(inside) :] == 0).all()
            assert (found.knn[b, i, len(inside) :] == 0).all()
    assert ball_query(p1, p2, K=k, radius=radius, return_nn=False).knn is None


def test_rows_are_gathered_with_zeros_for_padding(generator):
    points = clouds(12, generator)
    idx = torch.tensor([[[0, -1], [5, 11]]] * 3)
    out = masked_gather(points, idx)
    assert torch.equal(out[1, 1, 1], points[1, 11])
    assert (out[:, 0, 1] == 0).all()
    gathered = knn_gather(points, idx.clamp(min=0), torch.tensor([12, 1, 2]))
    assert torch.equal(gathered[0], points[0][idx[0].clamp(min=0)])
    assert (gathered[1, :, 1] == 0).all()
    assert torch.equal(gathered[1, :, 0], points[1, [0, 5]])
