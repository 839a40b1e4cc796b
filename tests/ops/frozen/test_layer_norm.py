import re

import pytest
import torch

from pointpeft.ops import layer_norm, layer_norm_reference
from tests.ops.frozen import fused

SIZES = [(3, 7), (2, 40, 33), (300, 130)]


def case(size, generator):
    """x, weight, bias, γ, β, and a gradient for the result."""
    c = size[-1]
    draw = fused.draw
    weights = [start + 0.3 * draw(generator, c) for start in (1, 0, 1, 0)]
    return [draw(generator, *size), *weights], draw(generator, *size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(layer_norm, layer_norm_reference, *case(size, generator), dtype, device)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_short_result_is_rounded_once(size, dtype, scaled, wanted, cpu_level, generator):
    x, *weights = (t.float() for t in case(size, generator)[0])
    weights = weights if scaled else weights[:2]
    expected = layer_norm_reference(x.double(), *(t.double() for t in weights))
    got = layer_norm(x.requires_grad_(wanted), *weights, dtype=dtype)
    assert got.dtype == dtype
    assert ((got - expected).abs() <= torch.finfo(dtype).eps / 2 * expected.abs() + 2e-6).all()
    if wanted:
        assert torch.autograd.grad(got.sum(), x)[0].dtype == torch.float32


def test_without_scale_and_shift_it_is_layer_norm(device, generator):
    inputs, _ = case(SIZES[1], generator)
    x, weight, bias = (t.to(device) for t in inputs[:3])
    expected = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)
    torch.testing.assert_close(layer_norm(x, weight, bias), expected)


def test_opcheck_of_a_short_result(device, generator):
    x, weight, bias, *_ = (t.to(device, torch.float32) for t in case(SIZES[1], generator)[0])
    torch.library.opcheck(torch.ops.pointpeft.layer_norm, (x, weight, bias, 1e-5, torch.bfloat16))


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case((3, 7), generator)
    assert torch.autograd.gradcheck(layer_norm, [t.requires_grad_() for t in inputs])


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(layer_norm, *case(SIZES[1], generator), device)


def test_keeps_x_and_two_numbers_a_token(generator):
    inputs, _ = case((300, 130), generator)
    weights = 4 * 130 * 4  # products of weights and transforms
    assert fused.kept_bytes(layer_norm, inputs) <= 300 * 2 * 4 + weights


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(layer_norm, *case(SIZES[1], generator), device)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(6), "weight must have shape (7,), got (6,)"),
        (3, None, "scale and shift must be given together, got shift alone"),
        (4, torch.zeros(7, 1), "shift must have shape (7,), got (7, 1)"),
    ],
)
def test_bad_input_names_the_argument(index, value, message, generator):
    inputs = [t.float() for t in case(SIZES[0], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_norm(*inputs)


@pytest.mark.parametrize("dtype", [torch.int32, "bfloat16"])
def test_a_dtype_that_is_no_floating_one_is_refused(dtype, generator):
    with pytest.raises(ValueError, match="dtype must be a floating type of torch or None, got"):
        layer_norm(*case(SIZES[0], generator)[0], dtype=dtype)
