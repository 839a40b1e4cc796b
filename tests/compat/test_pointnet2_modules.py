import pytest
import torch

from pointpeft.compat import pointnet2_utils
from pointpeft.compat.pointnet2_modules import PointnetFPModule, PointnetSAModule, PointnetSAModuleMSG


@pytest.fixture
def inputs(generator):
    return torch.randn(2, 64, 3, generator=generator), torch.randn(2, 4, 64, generator=generator)


def test_parameters_have_their_published_names():
    names = set(PointnetSAModuleMSG(8, [0.3, 0.6], [4, 8], [[4, 8, 9], [4, 7]]).state_dict())
    assert names >= {"mlps.0.0.weight", "mlps.0.1.running_mean", "mlps.0.3.weight", "mlps.1.0.weight"}
    assert "mlps.0.0.bias" not in names
    assert "mlp.0.bias" in PointnetFPModule([4, 8], bn=False).state_dict()


def test_set_abstraction_pools_each_ball(inputs):
    xyz, features = inputs
    module = PointnetSAModule(mlp=[4, 8], npoint=16, radius=0.9, nsample=8).eval()
    new_xyz, pooled = module(xyz, features)
    idx = pointnet2_utils.furthest_point_sample(xyz, 16).long()
    assert torch.equal(new_xyz, xyz.gather(1, idx[..., None].expand(-1, -1, 3)))
    ball = pointnet2_utils.ball_query(0.9, 8, xyz, new_xyz).long()
    for m in (0, 7, 15):
        rows = ball[1, m]
        group = torch.cat([(xyz[1, rows] - new_xyz[1, m]).T, features[1][:, rows]])[None, :, None]
        torch.testing.assert_close(pooled[1, :, m], module.mlps[0](group)[0, :, 0].amax(-1))


def test_several_radii_lie_behind_each_other_and_no_count_means_all(inputs):
    xyz, features = inputs
    new_xyz, pooled = PointnetSAModuleMSG(16, [0.5, 1.0], [4, 8], [[4, 8], [4, 6]])(xyz, features)
    assert new_xyz.shape == (2, 16, 3)
    assert pooled.shape == (2, 14, 16)
    nowhere, everything = PointnetSAModule(mlp=[4, 7])(xyz, features)
    assert nowhere is None
    assert everything.shape == (2, 7, 1)
    with pytest.raises(ValueError, match="radii, nsamples and mlps must be as many, got 2, 1, 1"):
        PointnetSAModuleMSG(16, [0.5, 1.0], [4], [[4, 8]])


def test_propagation_weighs_by_inverse_distance(inputs):
    xyz, features = inputs
    known, carried = xyz[:, :10].contiguous(), features[..., :10].contiguous()
    module = PointnetFPModule([8, 6], bn=False).eval()
    out = module(xyz, known, features, carried)
    distance = (xyz[1, 40] - known[1]).square().sum(-1).sqrt()
    nearest = distance.argsort()[:3]
    weight = 1 / (distance[nearest] + 1e-8)
    mean = (carried[1][:, nearest] * weight / weight.sum()).sum(-1)
    expected = module.mlp(torch.cat([mean, features[1, :, 40]])[None, :, None, None])[0, :, 0, 0]
    torch.testing.assert_close(out[1, :, 40], expected)


def test_a_network_of_them_trains(inputs):
    xyz, features = inputs[0], inputs[1].requires_grad_()
    torch.manual_seed(0)
    down = PointnetSAModule(mlp=[4, 8], npoint=16, radius=0.9, nsample=8)
    up = PointnetFPModule([8 + 4, 6])
    parameters = [*down.parameters(), *up.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(10):
        new_xyz, pooled = down(xyz, features)
        loss = (up(xyz, new_xyz, features, pooled)[:, :3] - xyz.transpose(1, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    assert features.grad.abs().sum() > 0
    assert losses[-1] < 0.8 * losses[0]
