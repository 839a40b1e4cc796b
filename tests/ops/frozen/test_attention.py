import re
from functools import partial

import pytest
import torch

from pointpeft.ops import attention, attention_reference
from tests.conftest import CPU_LEVELS
from tests.ops.frozen import fused

# batch, tokens, heads, width of a head
SIZES = [(1, 1, 1, 8), (2, 5, 3, 16), (3, 67, 2, 32), (1, 17, 3, 5)]
TILES = [(2, 32, 2, 64), (1, 135, 2, 72)]  # whole tiles of AMX, and one channel block more than a whole one


def case(size, generator):
    """z, and a gradient for the result."""
    batch, tokens, heads, width = size
    c = heads * width
    return [fused.draw(generator, batch, tokens, 3 * c)], fused.draw(generator, batch, tokens, c)


def pair(size):
    return (partial(f, num_heads=size[2]) for f in (attention, attention_reference))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_and_gradient_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, device)


@pytest.mark.parametrize("cpu_level", CPU_LEVELS, indirect=True)
@pytest.mark.parametrize("size", SIZES + TILES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_where_no_gradient_is_asked_for_equals_the_reference(size, dtype, cpu_level, generator):
    z = case(size, generator)[0][0].to(dtype)
    op, reference = pair(size)
    expected = reference(z.double())
    assert (op(z).double() - expected).abs().max() <= fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("size", SIZES + TILES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_at_each_vector_level(size, dtype, cpu_level, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, "cpu")


def test_keeps_its_input_its_result_and_one_number_per_head_and_token(generator):
    inputs, grad = case(SIZES[2], generator)
    batch, tokens, heads, _ = SIZES[2]
    assert fused.kept_bytes(next(pair(SIZES[2])), inputs) == 4 * (grad.numel() + batch * tokens * heads)


@pytest.mark.parametrize("cpu_level", CPU_LEVELS, indirect=True)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_values_that_are_no_numbers_go_where_the_reference_has_them(value, dtype, cpu_level, generator):
    z = torch.randn(3, 37, 3 * 24, generator=generator).to(dtype)
    z[0, 3, 5] = value  # a query
    z[1, 20, 24 + 5] = value  # a key
    got, expected = attention(z, 1), attention_reference(z.double(), 1)
    assert torch.equal(got.isfinite(), expected.isfinite())
    assert (got.double() - expected)[2].abs().max() <= fused.TOLERANCE[dtype]


def test_gradients_are_those_of_finite_differences(generator):
    op, _ = pair(SIZES[1])
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in case(SIZES[1], generator)[0]])


def test_strides_and_offsets_do_not_matter(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_strides_do_not_matter(op, *case(SIZES[2], generator), device)
    z = case(SIZES[2], generator)[0][0].to(device, torch.float32)
    apart = z.transpose(1, 2).contiguous().transpose(1, 2)  # channels are not side by side
    assert torch.equal(op(apart), op(z))


def test_opcheck(device, generator):
    inputs, grad = case(SIZES[1], generator)
    z, grad = inputs[0].to(device, torch.float32), grad.to(device, torch.float32)
    torch.library.opcheck(torch.ops.pointpeft.attention, (z, 3))
    out, lse = torch.ops.pointpeft.attention(z, 3)
    torch.library.opcheck(torch.ops.pointpeft.attention_backward, (grad, z, out, lse, 3))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_compiles(op, *case(SIZES[2], generator), device)


def test_autocast_gives_its_type(device, generator):
    fused.assert_autocasts(*pair(SIZES[2]), case(SIZES[2], generator)[0], device)


@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)])
def test_over_nothing_it_is_empty(shape):
    assert attention(torch.zeros(shape), 2).shape == (*shape[:2], 4)


@pytest.mark.parametrize(
    ("z", "heads", "message"),
    [
        (torch.zeros(5, 48), 1, "z must have 3 dimensions, got shape (5, 48)"),
        (torch.zeros(2, 5, 144), 5, "z must have a multiple of 3 * num_heads = 15 channels, got (2, 5, 144)"),
        (torch.zeros(2, 5, 144), 0, "z must have a multiple of 3 * num_heads = 0 channels"),
        (torch.zeros(2, 5, 144), True, "num_heads must be an int, got True"),
    ],
)
def test_bad_input_names_the_argument(z, heads, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(z, heads)
