import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import furthest_point_sample, furthest_point_sample_reference, sample_and_group
from tests.conftest import cut

SHAPES = [(1, 1, 1), (2, 7, 7), (3, 33, 5), (2, 513, 64), (1, 1031, 300), (5, 128, 17)]


def cloud(batch, n, generator, dtype=torch.float32, device="cpu"):
    return torch.rand(batch, n, 3, generator=generator).to(device, dtype)


@pytest.mark.parametrize(("batch", "n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_reference_index_for_index(batch, n, k, dtype, device, generator):
    xyz = cloud(batch, n, generator, dtype, device)
    assert torch.equal(furthest_point_sample(xyz, k), furthest_point_sample_reference(xyz, k))


def test_the_exported_reference_picks_the_same(generator):
    class Sample(torch.nn.Module):
        def forward(self, xyz):
            return furthest_point_sample_reference(xyz, 9)

    xyz = cloud(2, 33, generator)
    program = torch.export.export(Sample(), (xyz,))
    assert len(list(program.graph.nodes)) < 40  # one loop
    assert torch.equal(program.module()(xyz), furthest_point_sample_reference(xyz, 9))


def test_each_vector_level_equals_the_reference(cpu_level, generator):
    xyz = cloud(4, 777, generator)
    assert torch.equal(furthest_point_sample(xyz, 99), furthest_point_sample_reference(xyz, 99))


def test_each_pick_is_the_farthest_from_those_before_it(device, generator):
    xyz = cloud(2, 200, generator, device=device)
    idx = furthest_point_sample(xyz, 50, start=3)
    picked = xyz.gather(1, idx[..., None].expand(-1, -1, 3))
    for m in range(1, 50):
        nearest = torch.cdist(xyz.double(), picked[:, :m].double()).amin(-1)
        torch.testing.assert_close(nearest.gather(1, idx[:, m : m + 1])[:, 0], nearest.amax(1), rtol=1e-6, atol=1e-7)


def test_strides_and_offsets_do_not_matter(device, generator):
    xyz = cloud(3, 101, generator, device=device)
    assert torch.equal(furthest_point_sample(cut(xyz), 20), furthest_point_sample(xyz, 20))
    planar = xyz.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(furthest_point_sample(planar, 20), furthest_point_sample(xyz, 20))


def test_ties_go_to_the_lowest_index(device):
    square = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.float32, device=device)
    assert furthest_point_sample(square[None], 4).tolist() == [[0, 3, 1, 2]]


def test_duplicates_are_picked_again_only_when_nothing_else_is_left(device):
    xyz = torch.zeros(1, 6, 3, device=device)
    xyz[0, 4] = 1
    assert furthest_point_sample(xyz, 4).tolist() == [[0, 4, 0, 0]]


def test_lengths_hide_the_padding_and_starts_are_per_cloud(device, generator):
    xyz = cloud(3, 64, generator, device=device)
    lengths = torch.tensor([64, 40, 20], device=device)
    start = torch.tensor([5, 0, 19], device=device)
    idx = furthest_point_sample(xyz, 16, lengths=lengths, start=start)
    for b in range(3):
        alone = furthest_point_sample(xyz[b : b + 1, : lengths[b]], 16, start=int(start[b]))
        assert torch.equal(idx[b : b + 1], alone)
    assert torch.equal(idx, furthest_point_sample_reference(xyz, 16, lengths=lengths, start=start))


def test_min_sq_norm_never_selects_points_near_the_origin(device, generator):
    xyz = cloud(2, 300, generator, device=device) * 0.2 - 0.1
    idx = furthest_point_sample(xyz, 40, min_sq_norm=1e-3)
    assert torch.equal(idx, furthest_point_sample_reference(xyz, 40, min_sq_norm=1e-3))
    picked = xyz.gather(1, idx[..., None].expand(-1, -1, 3))[:, 1:]
    assert (picked.square().sum(-1) > 1e-3).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.data())
def test_any_cloud_gives_what_the_reference_gives(batch, n, data):
    k = data.draw(st.integers(1, n))
    # Few distinct values: many ties and duplicates.
    values = data.draw(st.lists(st.integers(-3, 3), min_size=batch * n * 3, max_size=batch * n * 3))
    xyz = torch.tensor(values, dtype=torch.float32).view(batch, n, 3)
    assert torch.equal(furthest_point_sample(xyz, k), furthest_point_sample_reference(xyz, k))


def test_opcheck(device, generator):
    xyz = cloud(2, 50, generator, device=device)
    op = torch.ops.pointpeft.furthest_point_sample
    torch.library.opcheck(op, (xyz, 7, None, None, 0, 0.0))
    lengths = torch.tensor([50, 30], device=device)
    torch.library.opcheck(op, (xyz.transpose(1, 2).contiguous().transpose(1, 2), 7, lengths, lengths - 1, 0, 1e-3))


def test_compiles_without_graph_breaks(device, generator):
    xyz = cloud(2, 50, generator, device=device)
    compiled = torch.compile(lambda p: furthest_point_sample(p, 9) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(xyz), furthest_point_sample(xyz, 9) + 1)


def test_reference_backend_can_be_forced(monkeypatch, generator):
    xyz = cloud(2, 30, generator)
    expected = furthest_point_sample(xyz, 5)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(furthest_point_sample(xyz, 5), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xyz": torch.zeros(2, 5)}, "xyz must have 3 dimensions, got shape (2, 5)"),
        ({"xyz": torch.zeros(2, 5, 2)}, "xyz must have 3 entries in its last dimension, got shape (2, 5, 2)"),
        ({"xyz": torch.zeros(2, 5, 3, dtype=torch.int64)}, "xyz must be float32"),
        ({"xyz": [[0.0]]}, "xyz must be a tensor, got list"),
        ({"num_samples": 6}, "num_samples must be between 1 and N = 5, got 6"),
        ({"num_samples": 0}, "num_samples must be between 1 and N = 5, got 0"),
        ({"num_samples": 1.0}, "num_samples must be an int, got float"),
        ({"xyz": torch.zeros(2, 0, 3), "num_samples": 1}, "num_samples = 1 cannot be taken from N = 0"),
        ({"start": 5}, "start + 1 must be between 1 and N = 5, got 6"),
        (
            {"lengths": torch.tensor([5, 3]), "start": 3},
            "start must be below each cloud's length, got 3 and length 3",
        ),
        ({"start": torch.tensor([0, 9])}, "start must be between 0 and each cloud's length - 1"),
        ({"start": torch.tensor([0])}, "start must be an int or an int64 tensor of shape (2,)"),
        (
            {"lengths": torch.tensor([5, 2])},
            "lengths must be between num_samples = 3 and N = 5, got values from 2 to 5",
        ),
        ({"lengths": torch.tensor([5.0, 5.0])}, "lengths must be an int32 or int64 tensor"),
        ({"lengths": torch.tensor([5])}, "lengths must have shape (2,)"),
        ({"min_sq_norm": -1.0}, "min_sq_norm must be at least 0, got -1.0"),
        ({"xyz": torch.full((2, 5, 3), torch.nan)}, "xyz must be finite"),
        ({"xyz": torch.full((2, 5, 3), torch.inf)}, "xyz must be finite"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"xyz": torch.zeros(2, 5, 3), "num_samples": 3} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        furthest_point_sample(call.pop("xyz"), call.pop("num_samples"), **call)


def test_an_empty_batch_gives_an_empty_result(device):
    assert furthest_point_sample(torch.zeros(0, 5, 3, device=device), 3).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 257, 1000])
def test_each_vector_level_resolves_ties_at_every_size(dtype, n, cpu_level, generator):
    xyz = torch.randint(-2, 3, (2, n, 3), generator=generator).to(dtype)
    k = min(n, 40)
    assert torch.equal(
        furthest_point_sample(xyz, k, start=n // 2), furthest_point_sample_reference(xyz, k, start=n // 2)
    )


def test_one_bad_coordinate_anywhere_is_found(cpu_level):
    for place in range(3 * 37):
        xyz = torch.zeros(1, 37, 3)
        xyz.view(-1)[place] = torch.nan if place % 2 else -torch.inf
        for layout in (xyz, cut(torch.zeros(1, 37, 3)).copy_(xyz), xyz.transpose(1, 2).contiguous().transpose(1, 2)):
            with pytest.raises(ValueError, match="xyz must be finite"):
                furthest_point_sample(layout, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("batch", "n"), [(1, 300), (2, 300), (5, 300), (4, 512), (3, 513), (2, 1024), (3, 1025)])
def test_clouds_that_are_sampled_together_do_not_meddle(batch, n, dtype, cpu_level, one_thread, generator):
    # Clouds that are small enough are sampled two at a time by each thread: on one, whatever the batch.
    xyz = cloud(batch, n, generator, dtype)
    call = {
        "lengths": torch.tensor([n, n - 100, 65, 64, n - 1][:batch]),
        "start": torch.tensor([5, n - 101, 64, 0, 7][:batch]),
    }
    idx = furthest_point_sample(xyz, 60, **call)
    assert torch.equal(idx, furthest_point_sample_reference(xyz, 60, **call))
    for b in range(batch):
        points = xyz[b, : call["lengths"][b]].double()
        for m in range(1, 60):
            nearest = torch.cdist(points, points[idx[b, :m]]).amin(-1)
            torch.testing.assert_close(nearest[idx[b, m]], nearest.amax(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("way", ["alone", "together", "tree"])
@pytest.mark.parametrize(("batch", "n", "k"), [(1, 1, 1), (3, 63, 63), (2, 129, 40), (3, 1500, 90)])
def test_each_way_equals_the_reference_at_sizes_that_do_not_choose_it(way, batch, n, k, cpu_level, generator):
    for xyz in (cloud(batch, n, generator), torch.randint(-3, 4, (batch, n, 3), generator=generator).double()):
        expected = furthest_point_sample_reference(xyz, k)
        assert torch.equal(torch.ops.pointpeft._furthest_point_sample_one_way(xyz, k, way), expected)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("scale", [3e-22, 1e-19, 1.0, 1e19])
def test_two_points_that_are_equally_far_but_for_rounding(scale, flush, cpu_level, one_thread, generator):
    # Two images of a point under exchanged axes are equally far from the origin, where sampling starts: the order in
    # which squares are added decides. Anywhere in the cloud, which has no other such ties: cloud for cloud, since after
    # one the vector kernels take more care.
    n, clouds = 600, 400
    xyz = torch.rand(clouds, n, 3, generator=generator) - 0.5
    far = 2 * torch.nn.functional.normalize(torch.rand(clouds, 3, generator=generator), dim=-1)
    places = torch.rand(clouds, n, generator=generator).argsort(1)[:, :2]
    places[:100, 1] = (places[:100, 0] + 128) % n  # one lane of the vectors, another stride
    places[100:200, 1] = (places[100:200, 0] + 16) % n  # the same stride
    places[200:300, 0] %= 512
    places[200:300, 1] = places[200:300, 0] ^ 64  # the same stride, in its other half
    clouds = torch.arange(clouds)
    xyz[clouds, places[:, 0]], xyz[clouds, places[:, 1]] = far, far[:, [2, 0, 1]]
    origin = torch.zeros(len(clouds), 1, 3)
    xyz = torch.cat([origin, xyz * scale], 1)
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        expected = furthest_point_sample_reference(xyz, 3)
        idx = torch.cat([furthest_point_sample(one, 3) for one in xyz.split(1)])
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(idx, expected)


@pytest.mark.parametrize("step", [1e-4, 1e-3, 1e-2])
def test_coordinates_on_a_grid_that_float32_does_not_hold(step, cpu_level, one_thread, generator):
    # Millimetres as metres: points at one distance on the grid differ in the last bit as floats.
    xyz = (cloud(24, 1500, generator) / step).round() * step
    idx = torch.cat([furthest_point_sample(one, 100) for one in xyz.split(1)])
    assert torch.equal(idx, furthest_point_sample_reference(xyz, 100))
    assert torch.equal(furthest_point_sample(xyz, 100), idx)


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="way must be alone, together or tree, got bucket"):
        torch.ops.pointpeft._furthest_point_sample_one_way(torch.zeros(1, 5, 3), 2, "bucket")


@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_bad_coordinate_in_either_of_two_clouds_is_found(bad, cpu_level, one_thread, generator):
    xyz = cloud(5, 100, generator)
    xyz[bad, 99, 2] = torch.nan
    with pytest.raises(ValueError, match="xyz must be finite"):
        furthest_point_sample(xyz, 9)
    xyz = torch.cat([xyz[:bad], xyz[bad + 1 :]])
    assert torch.equal(furthest_point_sample(xyz, 9), furthest_point_sample_reference(xyz, 9))


@pytest.mark.gpu
def test_cuda_checks_coordinates_only_under_pointpeft_check(monkeypatch, generator):
    xyz = cloud(2, 37, generator, device="cuda")
    xyz[1, 30, 2] = torch.nan
    monkeypatch.delenv("POINTPEFT_CHECK", raising=False)
    assert 30 not in furthest_point_sample(xyz, 36)[1].tolist()
    monkeypatch.setenv("POINTPEFT_CHECK", "1")
    with pytest.raises(ValueError, match="xyz must be finite, got 1 NaN"):
        furthest_point_sample(xyz, 36)
    with pytest.raises(ValueError, match="xyz must be finite, got 1 NaN"):
        sample_and_group(xyz, 8, 4)


def test_a_cloud_where_nothing_may_be_selected_gives_the_lowest_index(cpu_level):
    xyz = torch.full((1, 50, 3), 1e-3)
    assert furthest_point_sample(xyz, 4, start=7, min_sq_norm=1.0).tolist() == [[7, 0, 0, 0]]
    assert furthest_point_sample_reference(xyz, 4, start=7, min_sq_norm=1.0).tolist() == [[7, 0, 0, 0]]


def _ladder(n, generator):
    return 2.0 ** (torch.arange(n)[:, None] % 200 - 100.0) * torch.randn(n, 3, generator=generator).sign()


def _heap(n, generator):
    """Nearly all points in one place, so that medians split nothing."""
    xyz = torch.zeros(n, 3)
    xyz[::50] = torch.randn(len(xyz[::50]), 3, generator=generator)
    return xyz


LARGE = {
    "cube": lambda n, g: torch.rand(n, 3, generator=g),
    "sphere": lambda n, g: torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1),
    "line": lambda n, g: torch.rand(n, 1, generator=g) * torch.tensor([1.0, 0.0, -2.0]),
    "lattice with many ties and duplicates": lambda n, g: torch.randint(-6, 7, (n, 3), generator=g).float(),
    "one outlier": lambda n, g: torch.rand(n, 3, generator=g) + 1e6 * (torch.arange(n) == n // 2)[:, None],
    "ladder of scales": _ladder,
    "heap": _heap,
    "one place": lambda n, g: torch.ones(n, 3),
    "squares that overflow": lambda n, g: 3e38 * (2 * torch.rand(n, 3, generator=g) - 1),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_clouds_equal_the_reference(name, cpu_level, generator):
    xyz = LARGE[name](3001, generator)[None]
    assert torch.equal(furthest_point_sample(xyz, 800, start=17), furthest_point_sample_reference(xyz, 800, start=17))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_large_clouds_of_other_dtypes_equal_the_reference(dtype, cpu_level, generator):
    xyz = torch.randn(2, 3001, 3, generator=generator).to(dtype)
    expected = furthest_point_sample_reference(xyz, 800)
    assert torch.equal(furthest_point_sample(xyz, 800), expected)
    assert torch.equal(furthest_point_sample(cut(xyz), 800), expected)


def test_large_and_small_clouds_of_one_batch_keep_their_lengths_starts_and_rule(cpu_level, generator):
    xyz = torch.randn(3, 7000, 3, generator=generator) * 0.1
    call = {
        "lengths": torch.tensor([7000, 500, 6001]),
        "start": torch.tensor([6999, 3, 0]),
        "min_sq_norm": 1e-3,
    }
    assert torch.equal(furthest_point_sample(xyz, 400, **call), furthest_point_sample_reference(xyz, 400, **call))


def test_a_large_cloud_with_every_point_picked(generator):
    xyz = torch.randint(-9, 10, (1, 2000, 3), generator=generator).float()
    assert torch.equal(furthest_point_sample(xyz, 2000), furthest_point_sample_reference(xyz, 2000))


def test_a_cloud_large_enough_for_steps_on_several_threads(generator):
    xyz = torch.rand(1, 150_001, 3, generator=generator)
    assert torch.equal(furthest_point_sample(xyz, 320), furthest_point_sample_reference(xyz, 320))


def test_a_bad_coordinate_in_a_large_cloud_is_found(generator):
    xyz = torch.rand(1, 6000, 3, generator=generator)
    xyz[0, 4321, 1] = torch.inf
    with pytest.raises(ValueError, match="xyz must be finite"):
        furthest_point_sample(xyz, 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [129, 512, 1023, 2048, 4000, 8193, 12_289, 98_304, 98_305])
def test_every_kernel_that_a_size_selects_equals_the_reference(n, dtype, device, generator):
    xyz = cloud(2, n, generator, dtype, device)
    call = {"lengths": torch.tensor([n, n // 2 + 1], device=device), "start": n // 2}
    assert torch.equal(furthest_point_sample(xyz, 40, **call), furthest_point_sample_reference(xyz, 40, **call))


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "dtype"), [(200_003, torch.float32), (70_001, torch.float64), (196_609, torch.bfloat16)])
def test_buckets_equal_the_cpu_beyond_the_registers_of_the_largest_cluster(n, dtype, generator):
    # Clusters of 16 blocks hold 196,608 points in float32 and 65,536 in float64; from 64 samples on, what is larger is
    # sorted into buckets.
    xyz = cloud(2, n, generator, dtype, "cpu")
    call = {"lengths": torch.tensor([n, n // 2 + 1]), "start": n // 3}
    expected = furthest_point_sample(xyz, 96, **call)
    call["lengths"] = call["lengths"].cuda()
    assert torch.equal(furthest_point_sample(xyz.cuda(), 96, **call).cpu(), expected)
