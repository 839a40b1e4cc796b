import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import chamfer_distance, chamfer_distance_reference
from tests.conftest import cut

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (2, 7, 5), (3, 33, 64), (40, 32, 32), (2, 513, 130), (1, 1031, 300)]


def clouds(batch, n, m, generator, dtype=torch.float32, device="cpu"):
    return tuple(torch.rand(batch, count, 3, generator=generator).to(device, dtype) for count in (n, m))


def parts(a, b):
    return torch.ops.pointpeft.chamfer_distance(a, b)


def parts_reference(a, b):
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    dx, dy, dz = (a[:, :, None].to(wide) - b[:, None].to(wide)).unbind(-1)
    sq_distance = dx * dx + dy * dy + dz * dz
    idx_a, idx_b = sq_distance.argmin(2), sq_distance.argmin(1)
    return sq_distance.amin(2), idx_a, sq_distance.amin(1), idx_b


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nearest_points_are_the_references_bit_for_bit(batch, n, m, dtype, device, generator):
    a, b = clouds(batch, n, m, generator, dtype, device)
    for got, expected in zip(parts(a, b), parts_reference(a, b), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_vector_level_equals_the_reference(dtype, cpu_level, generator):
    a, b = clouds(3, 101, 77, generator, dtype)
    for got, expected in zip(parts(a, b), parts_reference(a, b), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("batch", "n", "m"), SHAPES)
@pytest.mark.parametrize("norm", [1, 2])
def test_value_and_gradients_are_the_references(batch, n, m, norm, device, generator):
    a, b = (t.requires_grad_() for t in clouds(batch, n, m, generator, device=device))
    twin_a, twin_b = (t.detach().double().requires_grad_() for t in (a, b))
    loss, expected = chamfer_distance(a, b, norm), chamfer_distance_reference(twin_a, twin_b, norm)
    (3 * loss).backward()
    (3 * expected).backward()
    # float32 against float64: means and sums of a few hundred terms.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(a.grad.double(), twin_a.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(b.grad.double(), twin_b.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_value_and_gradients_of_the_dtype(dtype, device, generator):
    a, b = (t.requires_grad_() for t in clouds(2, 20, 30, generator, dtype, device))
    loss = chamfer_distance(a, b)
    loss.backward()
    wide_a, wide_b = (t.detach().float().requires_grad_() for t in (a, b))
    expected = chamfer_distance_reference(wide_a, wide_b)
    expected.backward()
    assert loss.dtype == torch.float32
    assert a.grad.dtype == b.grad.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(a.grad, wide_a.grad.to(dtype), rtol=1e-2, atol=1e-5)  # one rounding to the dtype
    torch.testing.assert_close(b.grad, wide_b.grad.to(dtype), rtol=1e-2, atol=1e-5)


def test_values_worked_out_by_hand(device):
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], device=device)
    b = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [1, 2, 0]]], device=device)
    # a: 0, 1 to the origin; b: 0, 3 to (1, 0, 0), 2 to (1, 0, 0)
    assert chamfer_distance(a, b).item() == pytest.approx((0 + 1) / 2 + (0 + 9 + 4) / 3)
    assert chamfer_distance(a, b, norm=1).item() == pytest.approx(((0 + 1) / 2 + (0 + 3 + 2) / 3) / 2)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_coinciding_points_have_zero_gradient(backend, monkeypatch, device):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], device=device, requires_grad=True)
    chamfer_distance(a, torch.tensor([[[0.0, 0, 0]]], device=device), norm=1).backward()
    assert a.grad.tolist() == [[[0, 0, 0], [0.25, 0, 0]]]


def test_the_nearest_of_equally_near_points_has_the_lowest_index(device):
    a = torch.zeros(1, 1, 3, device=device, requires_grad=True)
    b = torch.tensor([[[2.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]]], device=device, requires_grad=True)
    _, idx_a, _, idx_b = parts(a, b)
    assert (idx_a.tolist(), idx_b.tolist()) == ([[1]], [[0, 0, 0, 0]])


def test_strides_and_offsets_do_not_matter(device, generator):
    a, b = clouds(3, 40, 51, generator, device=device)
    planar = a.transpose(1, 2).contiguous().transpose(1, 2)
    for given_a, given_b in [(cut(a), cut(b)), (planar, b), (a, b[:1].expand(3, -1, -1))]:
        mine = [t.detach().requires_grad_() for t in (given_a, given_b)]
        twins = [t.detach().contiguous().clone().requires_grad_() for t in (given_a, given_b)]
        loss, twin_loss = chamfer_distance(*mine), chamfer_distance(*twins)
        assert torch.equal(loss, twin_loss)
        for got, want in zip(torch.autograd.grad(loss, mine), torch.autograd.grad(twin_loss, twins), strict=True):
            assert torch.equal(got, want)


def test_the_backward_gives_the_same_bits_on_every_run(device, generator):
    a, b = clouds(4, 500, 30, generator, device=device)

    def once():
        mine = [t.clone().requires_grad_() for t in (a, b)]
        return torch.autograd.grad(chamfer_distance(*mine), mine)

    first = once()
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(once(), first, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**31))
def test_any_clouds_give_what_the_reference_gives(batch, n, m, seed):
    # Few distinct values: many ties and duplicates.
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-2, 3, (batch, count, 3), generator=generator).float() for count in (n, m))
    for got, expected in zip(parts(a, b), parts_reference(a, b), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("norm", [1, 2])
def test_gradcheck(norm, device, generator):
    a, b = (t.requires_grad_() for t in clouds(2, 5, 7, generator, torch.float64, device))
    torch.autograd.gradcheck(lambda a, b: chamfer_distance(a, b, norm), (a, b))
    torch.autograd.gradgradcheck(lambda a, b: chamfer_distance(a, b, norm), (a, b))


def test_opcheck(device, generator):
    a, b = clouds(2, 5, 7, generator, device=device)
    op = torch.ops.pointpeft.chamfer_distance
    torch.library.opcheck(op, (a.clone().requires_grad_(), b.clone().requires_grad_()))
    torch.library.opcheck(op, (cut(a), cut(b)))
    sq_a, idx_a, sq_b, idx_b = op(a, b)
    torch.library.opcheck(torch.ops.pointpeft.chamfer_distance_backward, (sq_a, sq_b, cut(a), b, idx_a, cut(idx_b)))


def test_compiles_without_graph_breaks(device, generator):
    mine = [t.requires_grad_() for t in clouds(2, 15, 9, generator, device=device)]
    twins = [t.detach().clone().requires_grad_() for t in mine]
    compiled = torch.compile(
        lambda a, b: chamfer_distance(a, b, norm=1) * 2, fullgraph=True, backend="aot_eager", dynamic=True
    )
    compiled(*mine).backward()
    (chamfer_distance(*twins, norm=1) * 2).backward()
    for x, y in zip(mine, twins, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": torch.zeros(2, 5)}, "a must have 3 dimensions, got shape (2, 5)"),
        ({"b": torch.zeros(2, 5, 2)}, "b must have 3 entries in its last dimension, got shape (2, 5, 2)"),
        ({"a": torch.zeros(2, 5, 3, dtype=torch.int64)}, "a must be float32"),
        ({"b": [[0.0]]}, "b must be a tensor, got list"),
        ({"b": torch.zeros(2, 4, 3, dtype=torch.float64)}, "b is torch.float64, but a is torch.float32"),
        ({"b": torch.zeros(2, 4, 3, device="meta")}, "b is on meta, but a is on cpu"),
        ({"b": torch.zeros(3, 4, 3)}, "b must have as many clouds as a, 2, got 3"),
        ({"b": torch.zeros(2, 0, 3)}, "a and b must have at least one point, got 5 and 0"),
        ({"norm": 3}, "norm must be 1 or 2, got 3"),
        ({"norm": "l2"}, "norm must be 1 or 2, got 'l2'"),
        ({"a": torch.full((2, 5, 3), torch.nan)}, "a must be finite"),
        ({"b": torch.full((2, 4, 3), -torch.inf)}, "b must be finite"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"a": torch.zeros(2, 5, 3), "b": torch.zeros(2, 4, 3)} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        chamfer_distance(**call)


def test_one_bad_coordinate_anywhere_is_found(cpu_level):
    for place in range(3 * 37):
        for value in (torch.nan, torch.inf, -torch.inf):
            a = torch.zeros(1, 37, 3)
            a.view(-1)[place] = value
            with pytest.raises(ValueError, match="b must be finite"):
                chamfer_distance(torch.zeros(1, 5, 3), a)


def test_the_mean_over_no_clouds_is_nan(device):
    assert chamfer_distance(torch.zeros(0, 5, 3, device=device), torch.zeros(0, 4, 3, device=device)).isnan()
