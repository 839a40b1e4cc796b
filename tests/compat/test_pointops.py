import pytest
import torch

from pointpeft.compat import pointops

SIZES, NEW_SIZES = [12, 2, 9], [5, 2, 4]


def clouds(generator, device, sizes=SIZES):
    xyz = torch.randn(sum(sizes), 3, generator=generator).to(device)
    return xyz, torch.tensor(sizes, device=device).cumsum(0).int()


def ranges(sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def test_farthest_points_cloud_by_cloud(device, generator):
    xyz, offset = clouds(generator, device)
    new_offset = torch.tensor(NEW_SIZES, device=device).cumsum(0).int()
    idx = pointops.farthest_point_sampling(xyz, offset, new_offset)
    assert idx.dtype == torch.int32
    expected = []
    for (first, end), count in zip(ranges(SIZES), NEW_SIZES, strict=True):
        points, picks = xyz[first:end].cpu(), [0]
        distance = torch.full((len(points),), torch.inf)
        for _ in range(1, count):
            distance = torch.minimum(distance, (points - points[picks[-1]]).square().sum(-1))
            picks.append(int(distance.argmax()))
        expected += [first + i for i in picks]
    assert idx.tolist() == expected
    with pytest.raises(ValueError, match="new_offset must ask for no points of an empty cloud, got 1"):
        pointops.furthestsampling(xyz[:2], offset.new_tensor([0, 2]), offset.new_tensor([1, 2]))


@pytest.mark.parametrize("own", [True, False])
def test_neighbours_stay_in_their_cloud(own, device, generator):
    xyz, offset = clouds(generator, device)
    query, new_offset = (xyz, offset) if own else clouds(generator, device, NEW_SIZES)
    idx, distance = pointops.knn_query(4, xyz, offset, *(() if own else (query, new_offset)))
    older, _ = pointops.knnquery(4, xyz, query, offset, new_offset)
    assert idx.dtype == older.dtype == torch.int32
    for (first, end), (q_first, q_end) in zip(ranges(SIZES), ranges(SIZES if own else NEW_SIZES), strict=True):
        expected = torch.cdist(query[q_first:q_end].double(), xyz[first:end].double()).sort(1)
        count = min(4, end - first)
        assert torch.equal(idx[q_first:q_end, :count].long(), expected.indices[:, :count] + first)
        torch.testing.assert_close(distance[q_first:q_end, :count], expected.values[:, :count].float())
        assert (idx[q_first:q_end, count:] == -1).all()
        assert (distance[q_first:q_end, count:] == 1e5).all()
        assert (older[q_first:q_end, count:] == first).all()
    assert torch.equal(older[idx >= 0], idx[idx >= 0])


def test_balls_are_shells_with_their_centre(device):
    xyz = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0], device=device)[:, None] * torch.tensor([1.0, 0, 0], device=device)
    offset = torch.tensor([5], device=device).int()
    idx, distance = pointops.ball_query(4, 2.5, 1.5, xyz, offset, xyz[:1].contiguous(), offset.new_tensor([1]))
    assert idx.tolist() == [[0, 2, -1, -1]]  # the centre, though it is nearer than 1.5
    assert distance.tolist() == [[0.0, 2.0, 1e5, 1e5]]
    idx, _ = pointops.ball_query(2, 5.0, 0.0, xyz, offset, xyz[:1].contiguous(), offset.new_tensor([1]))
    assert idx.tolist() == [[0, 2]]  # of 0 to 3, every second one
    seen = {tuple(pointops.random_ball_query(2, 5.0, 0.0, xyz, offset)[0][0].tolist()) for _ in range(60)}
    assert {i for pair in seen for i in pair} == {0, 1, 2, 3}
    assert len(seen) > 4
    with pytest.raises(ValueError, match=r"min_radius must be below max_radius, got 2\.0 and 1\.0"):
        pointops.ballquery(2, 1.0, 2.0, xyz, offset)


def test_groups_in_both_forms_and_zeros_where_there_is_no_neighbour(device, generator):
    xyz, offset = clouds(generator, device)
    feat = torch.randn(len(xyz), 5, generator=generator).to(device).requires_grad_()
    groups, idx = pointops.knn_query_and_group(feat, xyz, offset, nsample=4, with_xyz=True)
    assert groups.shape == (len(xyz), 4, 8)
    known = idx >= 0
    rows = idx.clamp(min=0).long()
    torch.testing.assert_close(groups[..., 3:], feat[rows] * known[..., None])
    torch.testing.assert_close(groups[..., :3], (xyz[rows] - xyz[:, None]) * known[..., None])
    assert torch.equal(pointops.grouping(idx, feat, xyz), groups[..., 3:])
    assert torch.equal(pointops.grouping(feat, idx), groups[..., 3:])
    groups[..., 3:].sum().backward()
    assert torch.equal(feat.grad[:, 0], torch.bincount(rows[known], minlength=len(xyz)).float())
    same, _ = pointops.ball_query_and_group(feat, xyz, idx=idx, with_xyz=True)
    assert torch.equal(same, groups)
    with pytest.raises(ValueError, match="nsample, offset and max_radio must be given where idx is not"):
        pointops.ball_query_and_group(feat, xyz, offset, nsample=3)


def test_dilated_groups_and_the_older_form(device, generator):
    xyz, offset = clouds(generator, device, [12, 9])
    feat = torch.randn(len(xyz), 5, generator=generator).to(device)
    nearest, _ = pointops.knn_query(9, xyz, offset)
    idx = pointops.query_and_group(3, xyz, None, feat, None, offset, offset, dilation=3, with_feat=False)
    assert torch.equal(idx, nearest[:, [0, 4, 8]])
    groups, idx = pointops.query_and_group(3, xyz, None, feat, None, offset, offset)
    assert torch.equal(idx, nearest[:, :3])
    assert torch.equal(pointops.queryandgroup(3, xyz, None, feat, None, offset, offset), groups)
    # 9 points cannot give each fifth of 11: they are spread over them all.
    idx = pointops.query_and_group(3, xyz, None, feat, None, offset, offset, dilation=4, with_feat=False)
    assert torch.equal(idx[12:], nearest[12:, [0, 4, 8]])


def test_interpolation_weighs_by_inverse_distance(device, generator):
    xyz, offset = clouds(generator, device)
    query, new_offset = clouds(generator, device, NEW_SIZES)
    feat = torch.randn(len(xyz), 5, generator=generator).to(device).requires_grad_()
    idx, distance = pointops.knn_query(3, xyz, offset, query, new_offset)
    inverse = 1 / (distance + 1e-8) * (idx >= 0)
    expected = (feat[idx.clamp(min=0).long()] * (inverse / inverse.sum(1, keepdim=True))[..., None]).sum(1)
    actual = pointops.interpolation(xyz, query, feat, offset, new_offset)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(expected.shape, generator=generator).to(device)
    a, e = (torch.autograd.grad(y, feat, grad)[0] for y in (actual, expected))
    torch.testing.assert_close(a, e)


def test_attention_steps_and_vector_attention(device, generator):
    n, groups, c, pairs = 6, 2, 4, 15

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device)

    query, key, value, weight = draw(n, groups, c), draw(n, groups, c), draw(n, groups, c), draw(c)
    target, refer = (torch.randint(n, (pairs,), generator=generator).int().to(device) for _ in range(2))
    relation = pointops.attention_relation_step(query, key, weight, target, refer)
    fused = pointops.attention_fusion_step(relation, value, target, refer)
    expected = torch.zeros_like(value)
    for m in range(pairs):
        for g in range(groups):
            dot = (query[target[m], g] * key[refer[m], g] * weight).sum()
            torch.testing.assert_close(relation[m, g], dot)
            expected[target[m], g] += dot * value[refer[m], g]
    torch.testing.assert_close(fused, expected)
    idx = torch.randint(n, (n, 3), generator=generator).to(device)
    features, position, weights = draw(n, c), draw(n, 3, c), draw(n, 3, 2)
    expected = sum((features[idx[:, s]] + position[:, s]) * weights[:, s].repeat(1, 2) for s in range(3))
    torch.testing.assert_close(pointops.aggregation(features, position, weights, idx), expected)
    torch.testing.assert_close(pointops.subtraction(features, features, idx), features[:, None] - features[idx])


def test_offsets_and_batches():
    batch = torch.tensor([0, 0, 2, 2, 2])
    offset = pointops.batch2offset(batch)
    assert (offset.tolist(), offset.dtype) == ([2, 2, 5], torch.int32)
    assert torch.equal(pointops.offset2batch(offset), batch)
    with pytest.raises(ValueError, match=r"offset must not fall, got \[3, 2\]"):
        pointops.knn_query(1, torch.zeros(3, 3), torch.tensor([3, 2]))


@pytest.mark.usefixtures("installed")
def test_both_places_of_import_are_answered():
    import pointops as first
    from lib.pointops.functions import pointops as second

    assert first is second is pointops
