import re
import sys

import pytest
import torch

from pointpeft.ops import scale_shift_mlp, scale_shift_mlp_reference
from pointpeft.ops.core import rows as _rows
from tests.ops.frozen import fused

module = sys.modules["pointpeft.ops.frozen.scale_shift_mlp"]
# leading sizes and C, H
SIZES = [((1, 1), 1), ((3, 7), 5), ((2, 40, 33), 70), ((700, 24), 96)]
TRAINED = [0, 3, 4, 7, 8]


def case(size, generator):
    """x and the weights, and a gradient for the result."""
    lead, h = size
    c = lead[-1]

    def draw(*shape, fan=1):
        return fused.draw(generator, *shape, fan=fan)

    first = [draw(h, c, fan=c), draw(h), 1 + 0.3 * draw(h), draw(h)]
    second = [draw(c, h, fan=h), draw(c), 1 + 0.3 * draw(c), draw(c)]
    return [draw(*lead), *first, *second], draw(*lead)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    pair = (scale_shift_mlp, scale_shift_mlp_reference)
    fused.assert_equals_reference(*pair, *case(size, generator), dtype, device, TRAINED)


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case(SIZES[1], generator)
    inputs = [t.requires_grad_(i in TRAINED) for i, t in enumerate(inputs)]
    assert torch.autograd.gradcheck(scale_shift_mlp, inputs)


def test_chunks_do_not_matter(generator, monkeypatch):
    inputs, grad = case(SIZES[3], generator)
    whole = fused.results(scale_shift_mlp, inputs, grad, TRAINED)
    monkeypatch.setattr(_rows, "per_chunk", lambda hidden, dtype: 37)
    fused.assert_all_close(fused.results(scale_shift_mlp, inputs, grad, TRAINED), whole, torch.float64)


def test_only_the_second_maps_output_is_kept(generator):
    inputs, _ = case(SIZES[3], generator)
    rows, c = inputs[0].shape

    def frozen_maps(*inputs):
        return scale_shift_mlp(*(t if i in TRAINED else t.detach() for i, t in enumerate(inputs)))

    assert fused.kept_bytes(frozen_maps, inputs) == 4 * rows * c


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(scale_shift_mlp, *case(SIZES[2], generator), device, TRAINED)


def test_opcheck(device, generator):
    inputs, grad = case(SIZES[1], generator)
    x, w1, b1, g1, s1, w2, b2, g2, s2 = (t.to(device, torch.float32) for t in inputs)
    grad = grad.to(device, torch.float32)
    args = (x, w1, b1, g1, s1, w2, b2, g2, s2)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift_mlp, args)
    _, z = torch.ops.pointpeft.scale_shift_mlp(*args)
    torch.library.opcheck(torch.ops.pointpeft.scale_shift_mlp_backward, (grad, x, z, w1, b1, g1, s1, w2, b2, g2))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(scale_shift_mlp, *case(SIZES[2], generator), device, TRAINED)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(5, 6), "w1 must have shape (5, 7), got (5, 6)"),
        (1, torch.zeros(5, 7, requires_grad=True), "w1 must be frozen, but it requires a gradient"),
        (7, torch.zeros(5), "gamma2 must have shape (7,), got (5,)"),
        (8, torch.zeros(7, dtype=torch.float64), "beta2 is torch.float64, but x is torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        scale_shift_mlp(*inputs)
