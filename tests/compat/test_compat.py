"""The drop-in modules against the straightforward PyTorch formulation, by the names that old repositories import."""

import subprocess
import sys
import textwrap

import pytest
import torch

import pointpeft.compat


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    before = set(sys.modules)
    pointpeft.compat.install()
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {
            "pointnet2_ops",
            "knn_cuda",
            "chamfer_dist",
            "extensions",
            "pytorch3d",
            "torch_cluster",
        }:
            del sys.modules[name]


def cloud(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"names must be among .* got \['pointops'\]"):
        pointpeft.compat.install("pointops")


def test_pointnet2_utils():
    from pointnet2_ops import pointnet2_utils as utils

    xyz, features = cloud(2, 64, 3), cloud(2, 5, 64)
    idx = utils.furthest_point_sample(xyz, 8)
    assert idx.dtype == torch.int32
    centers = utils.gather_operation(xyz.transpose(1, 2).contiguous(), idx).transpose(1, 2)
    assert torch.equal(centers, xyz.gather(1, idx.long()[..., None].expand(-1, -1, 3)))

    ball = utils.ball_query(0.8, 6, xyz, centers.contiguous())
    for b in range(2):
        for m in range(8):
            inside = ((xyz[b] - centers[b, m]).square().sum(-1) < 0.8**2).nonzero().flatten()[:6].tolist()
            assert ball[b, m].tolist() == inside + [inside[0]] * (6 - len(inside))

    grouped = utils.grouping_operation(features, ball)
    assert torch.equal(grouped[1, :, 3, 2], features[1, :, ball[1, 3, 2]])

    distance, nearest = utils.three_nn(xyz, centers.contiguous())
    expected = torch.cdist(xyz, centers).topk(3, largest=False)
    torch.testing.assert_close(distance, expected.values, rtol=1e-4, atol=2e-3)  # cdist rounds its matrix product
    assert nearest.dtype == torch.int32
    carried = utils.three_interpolate(features[..., :8].contiguous(), nearest, torch.full((2, 64, 3), 1 / 3))
    torch.testing.assert_close(carried[0, :, 7], features[0][:, nearest[0, 7].long()].mean(-1))


def test_the_origin_rule_of_pointnet2_ops():
    from pointnet2_ops.pointnet2_utils import furthest_point_sample

    xyz = torch.full((1, 4, 3), 0.01)
    xyz[0, 3] = 1.0
    assert furthest_point_sample(xyz, 3).tolist()[0][:2] == [0, 3]


def test_pointnet2_modules_train():
    from pointnet2_ops.pointnet2_modules import PointnetFPModule, PointnetSAModule, PointnetSAModuleMSG

    xyz, features = cloud(2, 64, 3), cloud(2, 4, 64).requires_grad_()
    sa = PointnetSAModule(mlp=[4, 8], npoint=16, radius=0.9, nsample=8)
    assert set(sa.state_dict()) >= {"mlps.0.0.weight", "mlps.0.1.running_mean"}
    new_xyz, pooled = sa(xyz, features)
    assert new_xyz.shape == (2, 16, 3)
    assert pooled.shape == (2, 8, 16)
    up = PointnetFPModule(mlp=[8 + 4, 6])(xyz, new_xyz, features, pooled)
    assert up.shape == (2, 6, 64)
    up.square().mean().backward()
    assert features.grad.abs().sum() > 0
    everything = PointnetSAModuleMSG(None, [None], [None], [[4, 7]])(xyz, features)
    assert everything[0] is None
    assert everything[1].shape == (2, 7, 1)


def test_knn_cuda():
    from knn_cuda import KNN

    ref, query = cloud(2, 50, 3), cloud(2, 7, 3)
    expected = (query[:, :, None] - ref[:, None]).square().sum(-1).sqrt().sort(dim=-1, stable=True)
    distance, idx = KNN(k=5, transpose_mode=True)(ref, query)
    torch.testing.assert_close(distance, expected.values[..., :5])
    assert torch.equal(idx, expected.indices[..., :5])
    flipped = KNN(k=5)(ref.transpose(1, 2), query.transpose(1, 2))
    assert torch.equal(flipped[1], idx.transpose(1, 2))


@pytest.mark.parametrize("name", ["chamfer_dist", "extensions.chamfer_dist"])
def test_chamfer_dist(name):
    module = __import__(name, fromlist=["ChamferDistanceL1"])
    a, b = cloud(3, 20, 3).requires_grad_(), cloud(3, 30, 3) + 0.1
    squared = (a[:, :, None] - b[:, None]).square().sum(-1)
    one, two = squared.amin(2), squared.amin(1)
    torch.testing.assert_close(module.ChamferDistanceL2()(a, b), one.mean() + two.mean())
    torch.testing.assert_close(module.ChamferDistanceL1()(a, b), (one.sqrt().mean() + two.sqrt().mean()) / 2)
    both = module.ChamferDistanceL2_split()(a, b)
    torch.testing.assert_close(torch.stack(both), torch.stack([one.mean(), two.mean()]))
    module.ChamferDistanceL2()(a, b).backward()
    (expected,) = torch.autograd.grad(one.mean() + two.mean(), a)
    torch.testing.assert_close(a.grad, expected)


def test_pytorch3d_pads_as_documented():
    from pytorch3d.ops import ball_query, knn_points, sample_farthest_points

    points, lengths = cloud(2, 12, 3), torch.tensor([12, 4])
    sampled, idx = sample_farthest_points(points, lengths, K=6)
    assert (idx[0] >= 0).all()
    assert idx[1, 4:].tolist() == [-1, -1]
    assert sorted(idx[1, :4].tolist()) == [0, 1, 2, 3]
    assert (sampled[1, 4:] == 0).all()

    near = knn_points(points, points, lengths, lengths, K=5, return_nn=True)
    squared = (points[:, :, None] - points[:, None]).square().sum(-1)
    expected = squared[0].sort(dim=-1, stable=True)
    assert torch.equal(near.idx[0], expected.indices[:, :5])
    torch.testing.assert_close(near.dists[0], expected.values[:, :5])
    short = squared[1, :4, :4].sort(dim=-1, stable=True)
    assert torch.equal(near.idx[1, :4, :4], short.indices)
    assert (near.idx[1, :, 4] == 0).all()
    assert (near.dists[1, 4:] == 0).all()
    assert near.knn.shape == (2, 12, 5, 3)

    ball = ball_query(points, points, lengths, lengths, K=3, radius=1.0)
    for m in range(12):
        inside = (squared[0, m] < 1).nonzero().flatten()[:3].tolist()
        assert ball.idx[0, m].tolist() == inside + [-1] * (3 - len(inside))


def test_torch_cluster():
    from torch_cluster import fps, knn, knn_graph, radius

    x, batch = cloud(20, 3), torch.tensor([0] * 12 + [1] * 8)
    idx = fps(x, batch, ratio=0.5, random_start=False)
    assert idx.shape == (10,)
    assert (batch[idx] == torch.tensor([0] * 6 + [1] * 4)).all()
    assert idx[0] == 0
    assert idx[6] == 12

    rows, columns = knn(x, x, 3, batch, batch)
    assert torch.equal(batch[rows], batch[columns])
    squared = (x[:12, None] - x[:12]).square().sum(-1)
    assert columns[rows == 4].tolist() == squared[4].sort(stable=True).indices[:3].tolist()
    source, target = knn_graph(x, 2, batch)
    assert (source != target).all()
    assert len(source) == 40

    rows, columns = radius(x, x, 1.0, batch, batch, max_num_neighbors=4)
    expected = (squared[4] < 1).nonzero().flatten()[:4].tolist()
    assert columns[rows == 4].tolist() == expected


def test_a_script_runs_with_the_modules_in_place(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import sys, torch
        from pointnet2_ops import pointnet2_utils
        from knn_cuda import KNN
        xyz = torch.rand(1, 10, 3)
        print(pointnet2_utils.furthest_point_sample(xyz, 4).shape, KNN(2, True)(xyz, xyz)[1].shape, sys.argv[1:])
        """)
    )
    command = [sys.executable, "-m", "pointpeft.compat", script, "--epochs", "3"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split("\n")[0] == "torch.Size([1, 4]) torch.Size([1, 10, 2]) ['--epochs', '3']"
