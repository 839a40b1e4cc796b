import re
import sys

import pytest
import torch

from pointpeft.ops import attention, attention_reference
from tests.conftest import CPU_LEVELS
from tests.ops.frozen import fused

# batch, tokens, heads, width of a head
SIZES = [(1, 1, 1, 8), (2, 5, 3, 16), (3, 67, 2, 32), (1, 17, 3, 5)]
TILES = [(2, 32, 2, 64), (1, 135, 2, 72)]  # whole tiles of AMX, and one channel block more than a whole one
ODD = [(1, 1, 1, 1), (2, 3, 2, 5), (1, 17, 3, 20), (2, 129, 1, 64), (1, 160, 2, 130)]
WITH_AND_WITHOUT_SCALE = pytest.mark.parametrize("scaled", [False, True])


def case(size, generator, scaled=False):
    """z, with `scaled` also γ and β, and a gradient for the result."""
    batch, tokens, heads, width = size
    c, draw = heads * width, fused.draw
    inputs = [draw(generator, batch, tokens, 3 * c), 1 + 0.3 * draw(generator, 3 * c), draw(generator, 3 * c)]
    return inputs if scaled else inputs[:1], draw(generator, batch, tokens, c)


def pair(size):
    return (lambda z, *terms, f=f: f(z, size[2], *terms) for f in (attention, attention_reference))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@WITH_AND_WITHOUT_SCALE
def test_result_and_gradient_equal_the_reference(size, dtype, scaled, device, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator, scaled), dtype, device)


@pytest.mark.parametrize("cpu_level", CPU_LEVELS, indirect=True)
@pytest.mark.parametrize("size", SIZES + TILES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_where_no_gradient_is_asked_for_equals_the_reference(size, dtype, cpu_level, generator):
    z = case(size, generator)[0][0].to(dtype)
    op, reference = pair(size)
    expected = reference(z.double())
    assert (op(z).double() - expected).abs().max() <= fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_scaled_result_at_each_vector_level(size, dtype, cpu_level, generator):
    inputs = [t.to(dtype) for t in case(size, generator, scaled=True)[0]]
    op, reference = pair(size)
    expected = reference(*(t.double() for t in inputs))
    allowed = fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    assert (op(*inputs).double() - expected).abs().max() <= allowed


@pytest.mark.parametrize(
    ("size", "scaled"), [*((size, False) for size in SIZES + TILES), *((size, True) for size in ODD)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_at_each_vector_level(size, scaled, dtype, cpu_level, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator, scaled), dtype, "cpu")


def test_gradients_do_not_depend_on_the_number_of_threads(generator, one_thread):
    inputs, grad = case(ODD[-1], generator, scaled=True)
    inputs, grad = [t.float() for t in inputs], grad.float()
    op, _ = pair(ODD[-1])
    alone = fused.results(op, inputs, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(fused.results(op, inputs, grad), alone, strict=True))


def test_log_sum_exp_at_each_vector_level(cpu_level, generator):
    z, scale, shift = case(ODD[3], generator, scaled=True)[0]
    q, k, _ = ((scale * z + shift).view(2, 129, 3, 1, 64).permute(2, 0, 3, 1, 4)).unbind()
    expected = (q @ k.transpose(-2, -1) / 8).logsumexp(-1)
    _, lse = torch.ops.pointpeft.attention(z.float(), scale.float(), shift.float(), 1)
    assert (lse - expected).abs().max() < 1e-5 * expected.abs().max()


def test_scores_of_any_size_are_mixed_and_nan_stays(cpu_level, generator):
    z, *terms = (t.float() for t in case(SIZES[2], generator, scaled=True)[0])
    op, reference = pair(SIZES[2])
    z = 1e3 * z  # scores of 1e6, of which one token takes all
    torch.testing.assert_close(op(z, *terms), reference(z, *terms))
    z[1, 5, 0] = float("nan")  # of a query of the first head: that token's first half alone
    got = op(z, *terms)
    assert got[1, 5, :32].isnan().all()
    got[1, 5, :32] = 0
    assert got.isfinite().all()


@WITH_AND_WITHOUT_SCALE
def test_keeps_its_inputs_its_result_and_one_number_per_head_and_token(scaled, generator):
    inputs, grad = case(SIZES[2], generator, scaled)
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


@WITH_AND_WITHOUT_SCALE
def test_gradients_are_those_of_finite_differences(scaled, generator):
    op, _ = pair(SIZES[1])
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in case(SIZES[1], generator, scaled)[0]])


@WITH_AND_WITHOUT_SCALE
def test_strides_and_offsets_do_not_matter(scaled, device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_strides_do_not_matter(op, *case(SIZES[2], generator, scaled), device)
    z = case(SIZES[2], generator)[0][0].to(device, torch.float32)
    apart = z.transpose(1, 2).contiguous().transpose(1, 2)  # channels are not side by side
    assert torch.equal(op(apart), op(z))


@WITH_AND_WITHOUT_SCALE
def test_opcheck(scaled, device, generator):
    inputs, grad = case(SIZES[1], generator, scaled)
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    inputs = inputs if scaled else [*inputs, None, None]
    torch.library.opcheck(torch.ops.pointpeft.attention, (*inputs, 3))
    out, lse = torch.ops.pointpeft.attention(*inputs, 3)
    torch.library.opcheck(torch.ops.pointpeft.attention_backward, (grad, *inputs, out, lse, 3))


@WITH_AND_WITHOUT_SCALE
def test_compiles_with_its_backward_without_graph_breaks(scaled, device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_compiles(op, *case(SIZES[2], generator, scaled), device)


@WITH_AND_WITHOUT_SCALE
def test_autocast_gives_its_type(scaled, device, generator):
    fused.assert_autocasts(*pair(SIZES[2]), case(SIZES[2], generator, scaled)[0], device)


@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)])
def test_over_nothing_it_is_empty(shape):
    assert attention(torch.zeros(shape), 2).shape == (*shape[:2], 4)


@pytest.mark.parametrize(
    ("index", "value", "heads", "message"),
    [
        (0, torch.zeros(5, 48), 1, "z must have 3 dimensions, got shape (5, 48)"),
        (0, torch.zeros(2, 5, 144), 5, "z must have a multiple of 3 * num_heads = 15 channels, got (2, 5, 144)"),
        (0, torch.zeros(2, 5, 144), 0, "z must have a multiple of 3 * num_heads = 0 channels"),
        (0, torch.zeros(2, 5, 144), True, "num_heads must be an int, got True"),
        (1, torch.zeros(48), 3, "scale must have shape (144,), got (48,)"),
        (1, None, 3, "scale and shift must be given together, got shift alone"),
        (2, torch.zeros(144, dtype=torch.float64), 3, "shift is torch.float64, but z is torch.float32"),
    ],
)
@WITH_AND_WITHOUT_SCALE
def test_bad_input_names_the_argument(index, value, heads, message, scaled, generator):
    inputs = [t.float() for t in case(SIZES[1], generator, scaled or index > 0)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(inputs[0], heads, *inputs[1:])


@pytest.mark.parametrize("size", [*SIZES[:3], *ODD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@WITH_AND_WITHOUT_SCALE
def test_what_answers_on_cuda_takes_any_width_of_a_head(size, dtype, scaled, generator):
    module = sys.modules["pointpeft.ops.frozen.attention"]
    with torch.library._scoped_library("pointpeft", "IMPL") as library:
        library.impl("attention", module._cuda, "CPU", allow_override=True)
        library.impl("attention_backward", module._cuda_backward, "CPU", allow_override=True)
        fused.assert_equals_reference(*pair(size), *case(size, generator, scaled), dtype, "cpu")
