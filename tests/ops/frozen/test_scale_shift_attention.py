import re
import sys
from functools import partial

import pytest
import torch

from pointpeft.ops import scale_shift_attention, scale_shift_attention_reference
from tests.ops.frozen import fused

# batch, tokens, heads, width of a head
SIZES = [(1, 1, 1, 8), (2, 5, 3, 16), (3, 67, 2, 32)]
ODD = [(1, 1, 1, 1), (2, 3, 2, 5), (1, 17, 3, 20), (2, 129, 1, 64), (1, 160, 2, 130)]


def case(size, generator):
    """z, γ, β, and a gradient for the result."""
    batch, tokens, heads, width = size
    c = heads * width
    draw = fused.draw
    inputs = [draw(generator, batch, tokens, 3 * c), 1 + 0.3 * draw(generator, 3 * c), draw(generator, 3 * c)]
    return inputs, draw(generator, batch, tokens, c)


def pair(size):
    return (partial(f, num_heads=size[2]) for f in (scale_shift_attention, scale_shift_attention_reference))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, device)


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_at_each_vector_level(size, dtype, cpu_level, generator):
    inputs = [t.to(dtype) for t in case(size, generator)[0]]
    op, reference = pair(size)
    expected = reference(*(t.double() for t in inputs))
    allowed = fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    assert (op(*inputs).double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_at_each_vector_level(size, dtype, cpu_level, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, "cpu")


def test_gradients_do_not_depend_on_the_number_of_threads(generator, one_thread):
    inputs, grad = case(ODD[-1], generator)
    inputs, grad = [t.float() for t in inputs], grad.float()
    op, _ = pair(ODD[-1])
    alone = fused.results(op, inputs, grad)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(fused.results(op, inputs, grad), alone, strict=True))


def test_log_sum_exp_at_each_vector_level(cpu_level, generator):
    z, gamma, beta = case(ODD[3], generator)[0]
    q, k, _ = ((gamma * z + beta).view(2, 129, 3, 1, 64).permute(2, 0, 3, 1, 4)).unbind()
    expected = (q @ k.transpose(-2, -1) / 8).logsumexp(-1)
    _, lse = torch.ops.pointpeft.scale_shift_attention(z.float(), gamma.float(), beta.float(), 1)
    assert (lse - expected).abs().max() < 1e-5 * expected.abs().max()


def test_scores_of_any_size_are_mixed_and_nan_stays(cpu_level, generator):
    z, gamma, beta = case(SIZES[2], generator)[0]
    op, reference = pair(SIZES[2])
    z = 1e3 * z.float()  # scores of 1e6, of which one token takes all
    torch.testing.assert_close(op(z, gamma.float(), beta.float()), reference(z, gamma.float(), beta.float()))
    z[1, 5, 0] = float("nan")  # of a query of the first head: that token's first half alone
    got = op(z, gamma.float(), beta.float())
    assert got[1, 5, :32].isnan().all()
    got[1, 5, :32] = 0
    assert got.isfinite().all()


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case(SIZES[1], generator)
    op, _ = pair(SIZES[1])
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in inputs])


def test_strides_and_offsets_do_not_matter(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_strides_do_not_matter(op, *case(SIZES[2], generator), device)


def test_keeps_its_inputs_and_on_the_cpu_its_result_and_one_number_per_head_and_token(generator):
    op, _ = pair(SIZES[2])
    inputs, grad = case(SIZES[2], generator)
    batch, tokens, _ = inputs[0].shape
    assert fused.kept_bytes(op, inputs) == 4 * (grad.numel() + batch * tokens * SIZES[2][2])


def test_opcheck(device, generator):
    inputs, grad = case(SIZES[1], generator)
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift_attention, (*inputs, 3))
    out, lse = torch.ops.pointpeft.scale_shift_attention(*inputs, 3)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift_attention_backward, (grad, *inputs, out, lse, 3))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_compiles(op, *case(SIZES[2], generator), device)


def test_autocast_gives_its_type(device, generator):
    fused.assert_autocasts(*pair(SIZES[2]), case(SIZES[2], generator)[0], device)


@pytest.mark.parametrize(
    ("index", "value", "heads", "message"),
    [
        (0, torch.zeros(5, 48), 1, "z must have 3 dimensions, got shape (5, 48)"),
        (0, torch.zeros(2, 5, 144), 5, "z must have a multiple of 3 * num_heads = 15 channels, got (2, 5, 144)"),
        (0, torch.zeros(2, 5, 144), 0, "z must have a multiple of 3 * num_heads = 0 channels"),
        (1, torch.zeros(48), 3, "gamma must have shape (144,), got (48,)"),
        (2, torch.zeros(144, dtype=torch.float64), 3, "beta is torch.float64, but z is torch.float32"),
    ],
)
def test_bad_input_names_the_argument(index, value, heads, message, generator):
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        scale_shift_attention(*inputs, heads)


@pytest.mark.parametrize("size", [*SIZES, *ODD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_answers_on_cuda_takes_any_width_of_a_head(size, dtype, generator):
    module = sys.modules["pointpeft.ops.frozen.scale_shift_attention"]
    with torch.library._scoped_library("pointpeft", "IMPL") as library:
        library.impl("scale_shift_attention", module._cuda, "CPU", allow_override=True)
        library.impl("scale_shift_attention_backward", module._cuda_backward, "CPU", allow_override=True)
        fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, "cpu")
