import re

import pytest
import torch

from pointpeft.ops import MlpWeights, frozen_mlp, frozen_mlp_reference
from pointpeft.ops.core import rows
from tests.ops.frozen import fused

# leading sizes and C, H
SIZES = [((1, 1), 1), ((3, 7), 5), ((2, 40, 33), 70), ((700, 24), 96)]
WITH_AND_WITHOUT_SCALES = pytest.mark.parametrize("scaled", [False, True])


def case(size, generator, scaled=False):
    """x and the maps, with `scaled` also γ and β of both, and a gradient for the result."""
    lead, h = size
    c = lead[-1]

    def draw(*shape, fan=1):
        return fused.draw(generator, *shape, fan=fan)

    maps = [draw(h, c, fan=c), draw(h), draw(c, h, fan=h), draw(c)]
    terms = [1 + 0.3 * draw(h), draw(h), 1 + 0.3 * draw(c), draw(c)]
    return [draw(*lead), *maps, *(terms if scaled else [])], draw(*lead)


def trained(scaled):
    """Which of the inputs get a gradient: all but the maps."""
    return [0, 5, 6, 7, 8] if scaled else [0]


def flat(x, *weights):
    """The operation on one list of tensors."""
    return frozen_mlp(x, MlpWeights(*weights))


def reference(x, *weights):
    return frozen_mlp_reference(x, MlpWeights(*weights))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
@WITH_AND_WITHOUT_SCALES
def test_result_and_gradients_equal_the_reference(size, dtype, scaled, device, generator):
    fused.assert_equals_reference(flat, reference, *case(size, generator, scaled), dtype, device, trained(scaled))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_result_where_no_gradient_is_asked_for_equals_the_reference(size, dtype, device, generator):
    inputs = [t.to(device, dtype) for t in case(size, generator)[0]]
    expected = reference(*(t.double() for t in inputs))
    allowed = fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    assert (flat(*inputs).double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("function", [flat, reference])
def test_either_map_may_have_a_scale_alone(function, generator):
    x, *weights = case(SIZES[1], generator, scaled=True)[0]
    for first in (4, 6):
        one = [t if i < 4 or i in (first, first + 1) else None for i, t in enumerate(weights)]
        filled = [torch.full_like(weights[i], i % 2 == 0) if t is None else t for i, t in enumerate(one)]
        torch.testing.assert_close(function(x, *one), reference(x, *filled))


@WITH_AND_WITHOUT_SCALES
def test_gradients_are_those_of_finite_differences(scaled, generator):
    inputs, _ = case(SIZES[1], generator, scaled)
    inputs = [t.requires_grad_(i in trained(scaled)) for i, t in enumerate(inputs)]
    assert torch.autograd.gradcheck(flat, inputs)


def test_chunks_do_not_matter(generator, monkeypatch):
    inputs, grad = case(SIZES[3], generator, scaled=True)
    plain, whole = flat(*inputs[:5]), fused.results(flat, inputs, grad, trained(True))
    monkeypatch.setattr(rows, "per_chunk", lambda hidden, dtype: 37)
    assert (flat(*inputs[:5]) - plain).abs().max() <= 1e-12 * plain.abs().max()
    fused.assert_all_close(fused.results(flat, inputs, grad, trained(True)), whole, torch.float64)


def test_with_scales_only_the_second_maps_output_is_kept(generator):
    inputs, _ = case(SIZES[3], generator, scaled=True)
    count, c = inputs[0].shape

    def frozen_maps(*inputs):
        return flat(*(t if i in trained(True) else t.detach() for i, t in enumerate(inputs)))

    assert fused.kept_bytes(frozen_maps, inputs) == 4 * count * c


@WITH_AND_WITHOUT_SCALES
def test_strides_and_offsets_do_not_matter(scaled, device, generator):
    fused.assert_strides_do_not_matter(flat, *case(SIZES[2], generator, scaled), device, trained(scaled))


@WITH_AND_WITHOUT_SCALES
def test_opcheck(scaled, device, generator):
    inputs, grad = case(SIZES[1], generator, scaled)
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    inputs = inputs if scaled else [*inputs, None, None, None, None]
    torch.library.opcheck(torch.ops.pointpeft.frozen_mlp, inputs)
    if scaled:
        x, *weights = inputs
        _, z = torch.ops.pointpeft.frozen_mlp(*inputs)
        torch.library.opcheck(torch.ops.pointpeft.frozen_mlp_backward, (grad, x, z, *weights[:7]))


@WITH_AND_WITHOUT_SCALES
def test_compiles_with_its_backward_without_graph_breaks(scaled, device, generator):
    fused.assert_compiles(flat, *case(SIZES[2], generator, scaled), device, trained(scaled))


@WITH_AND_WITHOUT_SCALES
def test_autocast_gives_its_type(scaled, device, generator):
    inputs = [t.to(device, torch.float32) for t in case(SIZES[2], generator, scaled)[0]]
    expected = reference(*inputs)
    with torch.autocast(device.type, torch.bfloat16):
        got = flat(*inputs)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() <= fused.TOLERANCE[torch.bfloat16] * float(expected.abs().max())


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(5, 6), "w1 must have shape (5, 7), got (5, 6)"),
        (1, None, "w1 must be a tensor, got NoneType"),
        (1, torch.zeros(5, 7, requires_grad=True), "w1 must be frozen, but it requires a gradient"),
        (3, torch.zeros(7, 5, requires_grad=True), "w2 must be frozen, but it requires a gradient"),
        (4, torch.zeros(7, dtype=torch.float64), "b2 is torch.float64, but x is torch.float32"),
        (5, None, "scale1 and shift1 must be given together, got shift1 alone"),
        (7, torch.zeros(5), "scale2 must have shape (7,), got (5,)"),
        (8, torch.zeros(7, dtype=torch.float64), "shift2 is torch.float64, but x is torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs = [t.float() for t in case(SIZES[1], generator, scaled=True)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        flat(*inputs)


@pytest.mark.parametrize("weights", [None, [torch.zeros(5, 7)] * 4, 3])
def test_weights_of_another_kind_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must be MlpWeights\(w1, .*, shift2\), got (NoneType|list|int)"):
        frozen_mlp(torch.zeros(3, 7), weights)
