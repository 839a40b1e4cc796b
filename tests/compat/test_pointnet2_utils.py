import math

import pytest
import torch

from pointpeft.compat import pointnet2_utils as utils


def clouds(batch, n, generator, device="cpu"):
    return torch.randn(batch, n, 3, generator=generator).to(device)


def ball(radius, nsample, xyz, center):
    """The published kernel's loop, for one ball."""
    row = [0] * nsample
    count = 0
    limit = torch.tensor(radius) ** 2
    for n, sq_distance in enumerate((xyz - center).square().sum(-1)):
        if sq_distance < limit and count < nsample:
            if count == 0:
                row = [n] * nsample
            row[count] = n
            count += 1
    return row


def farthest(xyz, npoint):
    """The published kernel's loop, for one cloud, ties to the lowest index."""
    temp = torch.full((len(xyz),), 1e10)
    idx = [0]
    for _ in range(1, npoint):
        best, chosen = -1.0, 0
        for k, point in enumerate(xyz):
            if point.square().sum() <= 1e-3:
                continue
            temp[k] = min(temp[k], (point - xyz[idx[-1]]).square().sum())
            if temp[k] > best:
                best, chosen = temp[k], k
        idx.append(chosen)
    return idx


@pytest.mark.parametrize("npoint", [1, 9, 17, 25])
@pytest.mark.parametrize("scale", [1.0, 0.02, 0.0])
def test_farthest_points_follow_the_published_loop_also_near_the_origin_and_beyond_n(npoint, scale, device, generator):
    xyz = clouds(2, 17, generator, device) * scale  # at 0.02 about half of the points lie within the forbidden ball
    idx = utils.furthest_point_sample(xyz, npoint)
    assert idx.dtype == torch.int32
    assert idx.tolist() == [farthest(cloud.cpu(), npoint) for cloud in xyz]


@pytest.mark.parametrize("radius", [0.05, 0.8, 10.0])
@pytest.mark.parametrize("nsample", [1, 6, 17, 40])
def test_balls_are_padded_as_published_also_beyond_n(radius, nsample, device, generator):
    xyz, centers = clouds(2, 17, generator, device), clouds(2, 5, generator, device)
    idx = utils.ball_query(radius, nsample, xyz, centers)
    assert idx.dtype == torch.int32
    for b in range(2):
        for m in range(5):
            assert idx[b, m].tolist() == ball(radius, nsample, xyz[b].cpu(), centers[b, m].cpu())


@pytest.mark.parametrize("known", [1, 2, 3, 20])
def test_the_three_nearest_are_complete_even_where_there_are_fewer(known, device, generator):
    unknown, points = clouds(2, 7, generator, device), clouds(2, known, generator, device)
    distance, idx = utils.three_nn(unknown, points)
    assert idx.dtype == torch.int32
    everything = (unknown[:, :, None] - points[:, None]).square().sum(-1).sort(dim=-1, stable=True)
    here = min(3, known)
    assert torch.equal(idx[..., :here].long(), everything.indices[..., :here])
    torch.testing.assert_close(distance[..., :here], everything.values[..., :here].sqrt())
    assert (idx[..., here:] == 0).all()
    assert (distance[..., here:] == math.inf).all()


def test_rows_are_taken_channel_first_and_give_their_gradient_back(device, generator):
    features = torch.randn(2, 5, 9, generator=generator).to(device).requires_grad_()
    idx = torch.randint(0, 9, (2, 4, 3), generator=generator).to(device, torch.int32)
    rows = torch.arange(2, device=device)[:, None, None]
    expected = features.transpose(1, 2)[rows, idx.long()].permute(0, 3, 1, 2)
    grouped = utils.grouping_operation(features, idx)
    assert torch.equal(grouped, expected)
    assert torch.equal(utils.gather_operation(features, idx[..., 0].contiguous()), expected[..., 0])
    weight = torch.randn(expected.shape, generator=generator).to(device)
    gradients = [torch.autograd.grad((out * weight).sum(), features)[0] for out in (grouped, expected)]
    torch.testing.assert_close(*gradients)


def test_interpolation_sums_with_the_weights_and_trains_the_features_alone(device, generator):
    features = torch.randn(2, 5, 9, generator=generator).to(device).requires_grad_()
    idx = torch.randint(0, 9, (2, 4, 3), generator=generator).to(device, torch.int32)
    weight = torch.rand(2, 4, 3, generator=generator).to(device).requires_grad_()
    out = utils.three_interpolate(features, idx, weight)
    expected = torch.stack([(features[b][:, idx[b].long()] * weight[b]).sum(-1) for b in range(2)])
    torch.testing.assert_close(out, expected)
    to_features, to_weight = torch.autograd.grad(out.square().sum(), [features, weight], allow_unused=True)
    torch.testing.assert_close(to_features, torch.autograd.grad(expected.square().sum(), features)[0])
    assert to_weight is None


@pytest.mark.parametrize("use_xyz", [True, False])
def test_groups_hold_centred_coordinates_before_the_features(use_xyz, generator):
    xyz, centers = clouds(2, 17, generator), clouds(2, 5, generator)
    features = torch.randn(2, 4, 17, generator=generator)
    out = utils.QueryAndGroup(0.8, 6, use_xyz)(xyz, centers, features)
    assert out.shape == (2, 7 if use_xyz else 4, 5, 6)
    idx = utils.ball_query(0.8, 6, xyz, centers).long()
    assert torch.equal(out[1, -4:, 3, 2], features[1, :, idx[1, 3, 2]])
    if use_xyz:
        assert torch.equal(out[1, :3, 3, 2], xyz[1, idx[1, 3, 2]] - centers[1, 3])
        assert torch.equal(out[:, :3], utils.QueryAndGroup(0.8, 6)(xyz, centers))
    else:
        with pytest.raises(ValueError, match="features must be given where use_xyz is False"):
            utils.QueryAndGroup(0.8, 6, use_xyz)(xyz, centers)


def test_the_group_of_all_is_the_cloud_itself(generator):
    xyz, features = clouds(2, 17, generator), torch.randn(2, 4, 17, generator=generator)
    out = utils.GroupAll()(xyz, None, features)
    assert torch.equal(out, torch.cat([xyz.transpose(1, 2), features], 1).unsqueeze(2))
    assert torch.equal(utils.GroupAll(use_xyz=False)(xyz, None, features), features.unsqueeze(2))
    assert torch.equal(utils.GroupAll()(xyz, None), xyz.transpose(1, 2).unsqueeze(2))
