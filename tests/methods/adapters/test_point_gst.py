"""PointGST's graphs and its adapter against their equations, and what the published quirks do."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model, from_published
from pointpeft.checkpoints import to_published
from pointpeft.methods.adapters.point_gst import (
    SpectralAdapter,
    adjacency,
    fixed_signs,
    fourier_basis,
    published_adjacency,
    spectra,
)
from pointpeft.methods.morton import morton_key
from tests.methods.tools import block_input, cloud, make, same_at_start, stirred


def test_the_start_is_the_backbone():
    assert same_at_start("point_gst") == 0


def test_the_graph_is_scaled_by_its_own_smallest_distance():
    points = cloud(3, 40).double()
    points[1] *= 7
    a = adjacency(points)
    for graph, own in zip(points, a, strict=True):
        distance = torch.cdist(graph, graph, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance[distance > 0].min()
        torch.testing.assert_close(own, 1 / (distance / nearest + torch.eye(40, dtype=torch.float64)))
    torch.testing.assert_close(a[1], adjacency(points[1] / 7))


def test_points_at_one_place_make_no_hole_in_the_graph():
    points = cloud(1, 12)
    points[0, 5] = points[0, 3]
    a = adjacency(torch.cat([points, torch.ones(1, 12, 3)]))
    assert torch.isfinite(a).all()
    assert a[0, 3, 5] == 1
    assert (a[1] == 1).all()


def test_the_basis_diagonalises_the_laplacian():
    a = adjacency(cloud(2, 40).double())
    basis = fixed_signs(fourier_basis(a))
    root = a.sum(-1).add(1e-6).rsqrt().diag_embed()
    laplacian = torch.eye(40, dtype=torch.float64) - root @ a @ root
    spectrum = basis.mT @ laplacian @ basis
    frequencies = spectrum.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(spectrum, frequencies.diag_embed(), atol=1e-9, rtol=0)
    assert (frequencies.diff(dim=-1) >= -1e-9).all()
    flips = torch.where(torch.rand(2, 1, 40) < 0.5, -1.0, 1.0).double()
    assert torch.equal(fixed_signs(basis * flips), basis)


def test_the_curve_interleaves_the_bits_of_y_x_and_z():
    cells = torch.tensor([[5, 3, 6]])  # x = 101, y = 011, z = 110
    assert morton_key(cells).item() == int("011101110", 2)
    negative = torch.tensor([[0, 0, -1]])  # two's complement of 16 bits
    assert morton_key(negative).item() == int("001" * 16, 2)


@pytest.mark.parametrize("published", [False, True])
def test_runs_are_cut_from_the_sorted_centres(published):
    centers = cloud(2, 64).abs()
    graphs = spectra(centers, 16, published)
    assert graphs.whole.shape == (2, 64, 64)
    assert graphs.runs.shape == (2, 4, 16, 16)
    rows = torch.arange(64).expand(2, -1)
    assert torch.equal(graphs.order.gather(1, graphs.back), rows)
    if published:
        keys = morton_key((100 * centers).long())
        assert (keys.gather(1, graphs.order).diff(dim=-1) >= 0).all()
    else:
        run = centers[1][graphs.order[1, 16:32]]
        torch.testing.assert_close(graphs.runs[1, 1], fixed_signs(fourier_basis(adjacency(run))))


def test_neighbours_along_the_curve_are_near_on_both_sides_of_the_origin():
    centers = cloud(4, 128)
    spread = {}
    for published in (False, True):
        order = spectra(centers, 32, published).order
        ordered = centers.gather(1, order[..., None].expand(-1, -1, 3))
        spread[published] = ordered.diff(dim=1).norm(dim=-1).mean()
    assert spread[False] < spread[True]


def test_published_scales_are_one_for_all_graphs():
    points = cloud(2, 20)  # up to 25 points the distances are exact
    far = published_adjacency(torch.cat([points, 0.01 * points[:1]]))[:2]
    assert not torch.allclose(far, published_adjacency(points))
    torch.testing.assert_close(published_adjacency(points[:1]), adjacency(points[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_the_adapter_is_its_equation(published):
    model = stirred("point_gst")
    x, ctx = block_input(model)
    adapter = SpectralAdapter(96, 12, published, {})
    for parameter in adapter.parameters():
        parameter.normal_(std=0.3)
    graphs = spectra(ctx.centers, 8, published)
    out = adapter(x, ctx, graphs)

    def filtered(z, u, norm):
        u = u.T if published else u
        f = u.T @ z
        return u @ (f + F.silu(norm(f) @ adapter.tune.weight.T + adapter.tune.bias))

    for b in range(2):
        z = adapter.down(x[b])
        h = F.silu(z)
        patches = z[1:]
        h[1:] += filtered(patches, graphs.whole[b], adapter.norm_whole)
        for run in range(2):
            rows = graphs.order[b, 8 * run : 8 * run + 8]
            h[1 + rows] += filtered(patches[rows], graphs.runs[b, run], adapter.norm_runs)
        torch.testing.assert_close(out[b], adapter.up(h), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quirks", ["none", "published"])
@torch.no_grad()
def test_only_the_published_quirks_mix_clouds(quirks):
    model = stirred("point_gst", quirks=quirks)
    xyz = cloud(4)
    others = xyz.clone()
    others[:3] *= 0.1
    moved = (model(xyz)[3] - model(others)[3]).abs().max()
    assert (moved > 1e-3) == (quirks == "published")


def test_the_order_of_the_points_matters_only_through_the_first():
    model = stirred("point_gst")
    xyz = cloud(3)
    shuffle = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(127)])
    with torch.no_grad():
        torch.testing.assert_close(model(xyz[:, shuffle]), model(xyz), rtol=1e-3, atol=1e-3)


def test_published_files_come_back():
    torch.manual_seed(0)
    config = {
        "NAME": "PointTransformer_PGST",
        "trans_dim": 48,
        "depth": 2,
        "cls_dim": 5,
        "num_heads": 4,
        "group_size": 8,
        "num_group": 32,
        "encoder_dims": 48,
        "rank": 6,
        "local": 16,
    }
    sizes = {"width": 48, "depth": 2, "num_heads": 4, "num_groups": 32, "group_size": 8, "min_sq_norm": 1e-3}
    model = create_model("point_mae", "point_gst", 5, rank=6, local=16, quirks="published", **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = to_published(model)
    assert {key.split("gft_adapter.")[1] for key in state if "blocks.1.gft_adapter" in key} == {
        f"{layer}.{kind}" for layer in ("down", "up", "adapt1", "norm_ly1", "norm_ly2") for kind in ("weight", "bias")
    }
    again = from_published(config, state).eval()
    assert again.method == model.method
    with torch.no_grad():
        torch.testing.assert_close(again(cloud()), model(cloud()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quirks": "official"}, "quirks must be one of none, published"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"local": 5}, "local must divide the backbone's num_groups = 16, got 5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make("point_gst", **options)
