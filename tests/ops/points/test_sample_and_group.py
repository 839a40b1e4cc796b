import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import Groups, furthest_point_sample, gather, knn, sample_and_group, sample_and_group_reference
from tests.conftest import cut

SHAPES = [(1, 1, 1, 1), (2, 7, 7, 7), (3, 65, 5, 16), (2, 1031, 64, 32), (1, 300, 33, 129), (1, 4500, 260, 16)]


def cloud(batch, n, generator, dtype=torch.float32, device="cpu"):
    return torch.rand(batch, n, 3, generator=generator).to(device, dtype)


def assert_same(mine, reference):
    for field in Groups._fields:
        assert getattr(mine, field).dtype == getattr(reference, field).dtype
        assert torch.equal(getattr(mine, field), getattr(reference, field)), field


@pytest.mark.parametrize(("batch", "n", "groups", "size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_reference(batch, n, groups, size, dtype, device, generator):
    xyz = cloud(batch, n, generator, dtype, device)
    assert_same(sample_and_group(xyz, groups, size), sample_and_group_reference(xyz, groups, size))


def test_each_vector_level_equals_the_reference(cpu_level, generator):
    xyz = cloud(4, 777, generator)
    assert_same(sample_and_group(xyz, 99, 20), sample_and_group_reference(xyz, 99, 20))


def test_is_its_three_parts(device, generator):
    xyz = cloud(3, 500, generator, device=device)
    groups = sample_and_group(xyz, 40, 16, start=7)
    assert torch.equal(groups.center_idx, furthest_point_sample(xyz, 40, start=7))
    assert torch.equal(groups.centers, gather(xyz, groups.center_idx))
    assert torch.equal(groups.neighbor_idx, knn(groups.centers, xyz, 16)[1])
    assert torch.equal(groups.patches, gather(xyz, groups.neighbor_idx) - groups.centers[:, :, None])


def test_a_patch_begins_with_its_centre_and_moves_outwards(device, generator):
    patches = sample_and_group(cloud(2, 300, generator, device=device), 20, 10).patches
    assert (patches[:, :, 0] == 0).all()
    assert (patches.square().sum(-1).diff(dim=-1) >= -1e-6).all()


def test_lengths_hide_the_padding_and_starts_are_per_cloud(device, generator):
    xyz = cloud(3, 64, generator, device=device)
    lengths, start = torch.tensor([64, 40, 20], device=device), torch.tensor([5, 0, 19], device=device)
    mine = sample_and_group(xyz, 8, 16, lengths=lengths, start=start)
    assert_same(mine, sample_and_group_reference(xyz, 8, 16, lengths=lengths, start=start))
    for b in range(3):
        alone = sample_and_group(xyz[b : b + 1, : lengths[b]], 8, 16, start=int(start[b]))
        assert_same(Groups(*(part[b : b + 1] for part in mine)), alone)


def test_min_sq_norm_is_passed_on(device, generator):
    xyz = cloud(2, 300, generator, device=device) * 0.2 - 0.1
    mine = sample_and_group(xyz, 40, 8, min_sq_norm=1e-3)
    assert_same(mine, sample_and_group_reference(xyz, 40, 8, min_sq_norm=1e-3))
    assert torch.equal(mine.center_idx, furthest_point_sample(xyz, 40, min_sq_norm=1e-3))


def test_strides_and_offsets_do_not_matter(device, generator):
    xyz = cloud(3, 101, generator, device=device)
    assert_same(sample_and_group(cut(xyz), 20, 9), sample_and_group(xyz, 20, 9))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.data())
def test_any_cloud_gives_what_the_reference_gives(batch, n, data):
    groups, size = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=batch * n * 3, max_size=batch * n * 3))
    xyz = torch.tensor(values, dtype=torch.float32).view(batch, n, 3)
    assert_same(sample_and_group(xyz, groups, size), sample_and_group_reference(xyz, groups, size))


def test_gradcheck(device, generator):
    xyz = cloud(2, 12, generator, torch.float64, device).requires_grad_()
    torch.autograd.gradcheck(lambda p: sample_and_group(p, 4, 3)[:2], xyz)
    torch.autograd.gradgradcheck(lambda p: [part.square() for part in sample_and_group(p, 4, 3)[:2]], xyz)


@pytest.mark.parametrize("part", ["patches", "centers"])
def test_gradients_of_one_output_alone(part, device, generator):
    xyz = cloud(2, 50, generator, device=device)
    grads = []
    for function in (sample_and_group, sample_and_group_reference):
        mine = xyz.clone().requires_grad_()
        getattr(function(mine, 8, 5), part).square().sum().backward()
        grads.append(mine.grad)
    torch.testing.assert_close(*grads)


def test_opcheck(device, generator):
    xyz = cloud(2, 50, generator, device=device)
    op = torch.ops.pointpeft.sample_and_group
    torch.library.opcheck(op, (xyz.requires_grad_(), 7, 5, None, None, 0, 0.0))
    lengths = torch.tensor([50, 30], device=device)
    torch.library.opcheck(op, (cut(xyz.detach()), 7, 5, lengths, lengths - 1, 0, 1e-3))


def test_compiles_without_graph_breaks(device, generator):
    xyz = cloud(2, 50, generator, device=device)
    mine, twin = xyz.clone().requires_grad_(), xyz.clone().requires_grad_()
    compiled = torch.compile(lambda p: sample_and_group(p, 9, 4), fullgraph=True, backend="aot_eager")
    assert_same(compiled(mine), sample_and_group(twin, 9, 4))
    compiled(mine).patches.square().sum().backward()
    sample_and_group(twin, 9, 4).patches.square().sum().backward()
    assert torch.equal(mine.grad, twin.grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xyz": torch.zeros(2, 5, 2)}, "xyz must have 3 entries in its last dimension, got shape (2, 5, 2)"),
        ({"num_groups": 6}, "num_groups must be between 1 and N = 5, got 6"),
        ({"group_size": 6}, "group_size must be between 1 and N = 5, got 6"),
        ({"group_size": 0}, "group_size must be between 1 and N = 5, got 0"),
        (
            {"lengths": torch.tensor([5, 3])},
            "lengths must be between group_size = 4 and N = 5, got values from 3 to 5",
        ),
        (
            {"lengths": torch.tensor([5, 2])},
            "lengths must be between num_groups = 3 and N = 5, got values from 2 to 5",
        ),
        ({"start": 5}, "start + 1 must be between 1 and N = 5, got 6"),
        ({"min_sq_norm": -1.0}, "min_sq_norm must be at least 0, got -1.0"),
        ({"xyz": torch.full((2, 5, 3), torch.nan)}, "xyz must be finite"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"xyz": torch.zeros(2, 5, 3), "num_groups": 3, "group_size": 4} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_and_group(call.pop("xyz"), call.pop("num_groups"), call.pop("group_size"), **call)


def test_an_empty_batch_gives_empty_results(device):
    groups = sample_and_group(torch.zeros(0, 5, 3, device=device), 3, 2)
    assert groups.patches.shape == (0, 3, 2, 3)
    assert groups.neighbor_idx.shape == (0, 3, 2)
