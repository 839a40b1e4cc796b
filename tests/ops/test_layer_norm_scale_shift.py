import re

import pytest
import torch

from pointpeft.ops import layer_norm_scale_shift, layer_norm_scale_shift_reference
from tests.ops import fused

SIZES = [(3, 7), (2, 40, 33), (300, 130)]


def case(size, generator):
    """x, weight, bias, γ, β, and a gradient for the result."""
    c = size[-1]
    draw = fused.draw
    weights = [shift + 0.3 * draw(generator, c) for shift in (1, 0, 1, 0)]
    return [draw(generator, *size), *weights], draw(generator, *size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    op, reference = layer_norm_scale_shift, layer_norm_scale_shift_reference
    fused.assert_equals_reference(op, reference, *case(size, generator), dtype, device)


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case((3, 7), generator)
    assert torch.autograd.gradcheck(layer_norm_scale_shift, [t.requires_grad_() for t in inputs])


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(layer_norm_scale_shift, *case(SIZES[1], generator), device)


def test_keeps_x_and_two_numbers_a_token(generator):
    inputs, _ = case((300, 130), generator)
    weights = 4 * 130 * 4  # products of weights and transforms
    assert fused.kept_bytes(layer_norm_scale_shift, inputs) <= 300 * 2 * 4 + weights


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(layer_norm_scale_shift, *case(SIZES[1], generator), device)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(6), "weight must have shape (7,), got (6,)"),
        (4, torch.zeros(7, 1), "beta must have shape (7,), got (7, 1)"),
    ],
)
def test_bad_input_names_the_argument(index, value, message, generator):
    inputs = [t.float() for t in case(SIZES[0], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        layer_norm_scale_shift(*inputs)
