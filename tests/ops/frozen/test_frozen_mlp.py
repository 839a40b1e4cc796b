import re

import pytest
import torch

from pointpeft.ops import frozen_mlp, frozen_mlp_reference
from pointpeft.ops.core import rows
from tests.ops.frozen import fused

# leading sizes and C, H
SIZES = [((1, 1), 1), ((3, 7), 5), ((2, 40, 33), 70), ((700, 24), 96)]


def case(size, generator):
    """x and the maps, and a gradient for the result."""
    lead, h = size
    c = lead[-1]

    def draw(*shape, fan=1):
        return fused.draw(generator, *shape, fan=fan)

    return [draw(*lead), draw(h, c, fan=c), draw(h), draw(c, h, fan=h), draw(c)], draw(*lead)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_and_gradient_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(frozen_mlp, frozen_mlp_reference, *case(size, generator), dtype, device, [0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_where_no_gradient_is_asked_for_equals_the_reference(size, dtype, device, generator):
    inputs = [t.to(device, dtype) for t in case(size, generator)[0]]
    expected = frozen_mlp_reference(*(t.double() for t in inputs))
    allowed = fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    assert (frozen_mlp(*inputs).double() - expected).abs().max() <= allowed


def test_gradients_are_those_of_finite_differences(generator):
    (x, *maps), _ = case(SIZES[1], generator)
    assert torch.autograd.gradcheck(lambda x: frozen_mlp(x, *maps), [x.requires_grad_()])


def test_chunks_do_not_matter(generator, monkeypatch):
    inputs, _ = case(SIZES[3], generator)
    whole = frozen_mlp(*inputs)
    monkeypatch.setattr(rows, "per_chunk", lambda hidden, dtype: 37)
    assert (frozen_mlp(*inputs) - whole).abs().max() <= 1e-12 * whole.abs().max()


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(frozen_mlp, *case(SIZES[2], generator), device, [0])


def test_opcheck(device, generator):
    x, *maps = (t.to(device, torch.float32) for t in case(SIZES[1], generator)[0])
    torch.library.opcheck(torch.ops.pointpeft.frozen_mlp, (x, *maps))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(frozen_mlp, *case(SIZES[2], generator), device, [0])


def test_autocast_gives_its_type(device, generator):
    x, *maps = (t.to(device, torch.float32) for t in case(SIZES[2], generator)[0])
    expected = frozen_mlp_reference(x, *maps)
    with torch.autocast(device.type, torch.bfloat16):
        got = frozen_mlp(x, *maps)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() <= fused.TOLERANCE[torch.bfloat16] * float(expected.abs().max())


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(5, 6), "w1 must have shape (5, 7), got (5, 6)"),
        (1, None, "w1 must be a tensor, got NoneType"),
        (3, torch.zeros(7, 5, requires_grad=True), "w2 must be frozen, but it requires a gradient"),
        (4, torch.zeros(7, dtype=torch.float64), "b2 is torch.float64, but x is torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        frozen_mlp(*inputs)
