import math

import pytest
import torch

from pointpeft.compat.torch_cluster import fps, knn, knn_graph, radius, radius_graph

SIZES = [12, 0, 1, 8]  # of clouds laid end to end; one is empty


def laid(sizes, generator, device="cpu", dim=3):
    x = torch.randn(sum(sizes), dim, generator=generator).to(device)
    return x, torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))


def parts(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def farthest(points, k):
    distance = torch.full((len(points),), torch.inf)
    idx = [0]
    for _ in range(1, k):
        distance = torch.minimum(distance, (points - points[idx[-1]]).square().sum(-1))
        idx.append(int(distance.argmax()))
    return idx


@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("ratio", [None, 0.25, 1.0])
def test_farthest_points_cloud_by_cloud(dim, ratio, device, generator):
    x, batch = laid(SIZES, generator, device, dim)
    idx = fps(x, batch, ratio, random_start=False)
    expected = []
    for rows in parts(SIZES):
        if len(rows):
            picked = farthest(x[list(rows)].cpu(), math.ceil((ratio or 0.5) * len(rows)))
            expected += [rows.start + i for i in picked]
    assert idx.tolist() == expected
    ptr = [0, 12, 12, 13, 21]
    assert fps(x, ratio=ratio, random_start=False, ptr=ptr).tolist() == expected
    assert fps(x, ratio=ratio, random_start=False, ptr=torch.tensor(ptr, device=device)).tolist() == expected


@pytest.mark.parametrize(("size", "ratio", "count"), [(10, 0.2, 2), (10, 0.21, 3), (10, 0.7, 7), (30, 0.1, 3)])
def test_counts_are_rounded_in_the_dtype_of_the_points(size, ratio, count, generator):
    assert len(fps(laid([size], generator)[0], ratio=ratio)) == count


def test_each_cloud_may_have_its_ratio_and_starts_are_random(generator):
    x, batch = laid([10, 8], generator)
    assert len(fps(x, batch, torch.tensor([0.1, 1.0]))) == 1 + 8
    torch.manual_seed(0)
    assert {int(fps(x, batch, 0.1)[0]) for _ in range(100)} == set(range(10))
    with pytest.raises(ValueError, match=r"ratio must be at most 1, got 1\.5"):
        fps(x, batch, 1.5)
    assert fps(x[:0], batch[:0]).tolist() == []


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("dim", [1, 3, 5])
def test_neighbours_stay_within_their_cloud(k, dim, device, generator):
    (x, batch_x), (y, batch_y) = laid(SIZES, generator, device, dim), laid([3, 2, 4, 0], generator, device, dim)
    found = knn(x, y, k, batch_x, batch_y)
    expected = []
    for rows_x, rows_y in zip(parts(SIZES), parts([3, 2, 4, 0]), strict=True):
        for i in rows_y:
            squared = sum((x[list(rows_x), c] - y[i, c]).square() for c in range(dim))
            expected += [(i, rows_x.start + int(j)) for j in squared.sort(stable=True).indices[:k]]
    assert list(zip(*found.tolist(), strict=True)) == expected


def test_points_may_be_scalars_or_directions(generator):
    x = torch.randn(9, generator=generator)
    nearest = (x[:, None] - x).abs().sort(dim=1, stable=True).indices[:, :2]
    assert torch.equal(knn(x, x, 2)[1].view(9, 2), nearest)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(4, 3, generator=generator)
    closest = torch.cosine_similarity(y[:, None], x, dim=-1).argmax(1)
    assert torch.equal(knn(x, y, 1, cosine=True)[1], closest)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_the_graph_points_from_neighbours_to_each_point(flow, generator):
    x, batch = laid([12, 8], generator)
    graph = knn_graph(x, 2, batch, flow=flow)
    source, target = graph if flow == "source_to_target" else graph.flip(0)
    squared = (x[:, None] - x).square().sum(-1)
    squared[batch[:, None] != batch] = torch.inf
    nearest = squared.sort(dim=1, stable=True).indices
    assert torch.equal(target, torch.arange(20).repeat_interleave(2))
    assert torch.equal(source.view(20, 2), nearest[:, 1:3])
    looped = knn_graph(x, 2, batch, loop=True, flow=flow)
    assert torch.equal((looped if flow == "source_to_target" else looped.flip(0))[0].view(20, 2), nearest[:, :2])


@pytest.mark.parametrize("graph", [knn_graph, radius_graph])
def test_other_flows_are_refused(graph):
    with pytest.raises(ValueError, match="flow must be source_to_target or target_to_source, got 'sideways'"):
        graph(torch.zeros(4, 3), 1, flow="sideways")


@pytest.mark.parametrize("dim", [1, 3, 5])
@pytest.mark.parametrize(("r", "most"), [(1.0, 32), (1.5, 3), (1e-6, 4), (100.0, 5)])
@pytest.mark.parametrize("ignore", [False, True])
def test_balls_hold_the_first_by_index(dim, r, most, ignore, device, generator):
    x, batch_x = laid(SIZES, generator, device, dim)
    y, batch_y = (x, batch_x) if ignore else laid([3, 2, 4, 0], generator, device, dim)
    found = radius(x, y, r, batch_x, batch_y, max_num_neighbors=most, ignore_same_index=ignore)
    expected = []
    for i in range(len(y)):
        squared = (x - y[i]).square().sum(-1)
        inside = (squared < r * r) & (batch_x == batch_y[i])
        if ignore:
            inside[i] = False
        expected += [(i, j) for j in inside.nonzero().flatten().tolist()[:most]]
    assert list(zip(*found.tolist(), strict=True)) == expected


@pytest.mark.parametrize("loop", [False, True])
def test_the_ball_graph_leaves_out_loops_by_default(loop, generator):
    x, batch = laid([12, 8], generator)
    source, target = radius_graph(x, 1.2, batch, loop=loop, max_num_neighbors=4)
    for i in range(20):
        inside = ((x - x[i]).square().sum(-1) < 1.44) & (batch == batch[i])
        inside[i] &= loop
        assert source[target == i].tolist() == inside.nonzero().flatten().tolist()[:4]
