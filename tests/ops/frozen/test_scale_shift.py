import re
import sys

import pytest
import torch

from pointpeft.ops import scale_shift, scale_shift_reference
from tests.ops.frozen import fused

module = sys.modules["pointpeft.ops.frozen.scale_shift"]
SIZES = [(1, 1), (3, 7), (2, 40, 33), (1030, 130)]


def case(size, generator):
    """x, γ, β, and a gradient for the result."""
    c = size[-1]
    draw = fused.draw
    return [draw(generator, *size), 1 + 0.3 * draw(generator, c), draw(generator, c)], draw(generator, *size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(scale_shift, scale_shift_reference, *case(size, generator), dtype, device)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (70, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_equal_the_reference(size, dtype, triton_device, generator):
    inputs, grad = case(size, generator)
    inputs, grad = [t.to(triton_device, dtype) for t in inputs], grad.to(triton_device, dtype)
    expected = fused.results(scale_shift_reference, [t.double() for t in inputs], grad.double())
    actual = [module._launch(*inputs), *module._launch_backward(grad, *inputs[:2])]
    fused.assert_all_close(actual, expected, dtype)


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case((3, 7), generator)
    assert torch.autograd.gradcheck(scale_shift, [t.requires_grad_() for t in inputs])


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(scale_shift, *case(SIZES[2], generator), device)


def test_keeps_nothing_but_its_inputs(generator):
    assert fused.kept_bytes(scale_shift, case(SIZES[2], generator)[0]) == 0


def test_opcheck(device, generator):
    inputs, grad = case(SIZES[1], generator)
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift, inputs)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift_backward, (grad, *inputs[:2]))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(scale_shift, *case(SIZES[2], generator), device)


def test_autocast_gives_its_type(device, generator):
    fused.assert_autocasts(scale_shift, scale_shift_reference, case(SIZES[2], generator)[0], device)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (0, torch.zeros(()), "x must have channels in its last dimension, got shape ()"),
        (0, 1.0, "x must be a tensor, got float"),
        (1, torch.zeros(6), "scale must have shape (7,), got (6,)"),
        (2, torch.zeros(7, dtype=torch.float64), "shift is torch.float64, but x is torch.float32"),
    ],
)
def test_bad_input_names_the_argument(index, value, message, generator):
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        scale_shift(*inputs)


def test_empty_input_gives_an_empty_result(device):
    assert scale_shift(*(torch.zeros(s, device=device) for s in ((0, 5, 7), (7,), (7,)))).shape == (0, 5, 7)
