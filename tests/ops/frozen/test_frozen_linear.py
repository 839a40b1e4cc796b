import re

import pytest
import torch

from pointpeft.ops import frozen_linear, frozen_linear_reference
from pointpeft.ops.core import products
from tests.ops.frozen import fused

# leading sizes and C, O; the last is worth the other matrix library
SIZES = [((1, 1), 1), ((3, 7), 5), ((2, 40, 33), 70), ((2, 300, 96), 130)]


def case(size, generator, bias=True):
    """x, weight and bias, and a gradient for the result."""
    lead, o = size
    x, weight = fused.draw(generator, *lead), fused.draw(generator, o, lead[-1], fan=lead[-1])
    return [x, weight, *([fused.draw(generator, o)] if bias else [])], fused.draw(generator, *lead[:-1], o)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradient_equal_the_reference(size, dtype, bias, device, generator):
    pair = (frozen_linear, frozen_linear_reference)
    fused.assert_equals_reference(*pair, *case(size, generator, bias), dtype, device, [0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_scaled_and_shifted_it_equals_the_reference(size, dtype, device, generator):
    inputs, grad = case(size, generator)
    inputs += [fused.draw(generator, size[1]), fused.draw(generator, size[1])]
    fused.assert_equals_reference(frozen_linear, frozen_linear_reference, inputs, grad, dtype, device, [0, 3, 4])


def test_scaled_and_shifted_gradients_are_those_of_finite_differences(generator):
    (x, weight, bias), _ = case(SIZES[1], generator)
    trained = [t.requires_grad_() for t in (x, fused.draw(generator, 5), fused.draw(generator, 5))]
    assert torch.autograd.gradcheck(lambda x, *after: frozen_linear(x, weight, bias, *after), trained)


def test_scaled_and_shifted_it_keeps_its_input_alone(generator):
    (x, weight, bias), _ = case(SIZES[2], generator)
    x.requires_grad_()
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
        frozen_linear(x, weight, bias, torch.ones(70, dtype=x.dtype), torch.zeros(70, dtype=x.dtype))
    scale = kept - {x.data_ptr(), weight.data_ptr(), bias.data_ptr()}
    assert len(scale) == 1


def test_scale_and_shift_come_together(generator):
    x, weight, _ = (t.float() for t in case(SIZES[1], generator)[0])
    with pytest.raises(ValueError, match="scale and shift must be given together, got scale alone"):
        frozen_linear(x, weight, None, torch.ones(5))


def test_gradients_are_those_of_finite_differences(generator):
    (x, weight, bias), _ = case(SIZES[1], generator)
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, weight, bias), [x.requires_grad_()])


def test_strides_and_offsets_do_not_matter(device, generator):
    fused.assert_strides_do_not_matter(frozen_linear, *case(SIZES[3], generator), device, [0])


@pytest.mark.parametrize("kind", ["whole", "transposed", "columns", "rows"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_any_layout_goes_to_either_library(kind, biased, onednn, generator, monkeypatch):
    if onednn and not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_ONEDNN", onednn)
    monkeypatch.setattr(products, "_LEAST", 0)
    x, big = torch.randn(400, 96, generator=generator), torch.randn(260, 260, generator=generator)
    weight = {"whole": big[:130, :96].contiguous(), "transposed": big[:96, :130].t()}
    weight = {**weight, "columns": big[:130, 7:103], "rows": big.contiguous()[::2, :96]}[kind]
    bias = big[3, ::2] if biased else None
    expected = x.double() @ weight.double().t() + (bias.double() if biased else 0)
    wide = torch.empty(400, 200)
    out, buffer = wide[:, :130], torch.empty(400, 130)
    results = [products.linear(x, weight, bias), products.linear(x, weight, bias, out=out)]
    results.append(products.linear(x, weight, bias, buffer=buffer))
    assert results[1].data_ptr() == wide.data_ptr()
    for got in (*results, out):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_opcheck(device, generator):
    (x, weight, bias), _ = case(SIZES[1], generator)
    x, weight, bias = (t.to(device, torch.float32) for t in (x, weight, bias))
    torch.library.opcheck(torch.ops.pointpeft.frozen_linear, (x, weight, bias))
    torch.library.opcheck(torch.ops.pointpeft.frozen_linear, (x, weight, None))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    fused.assert_compiles(frozen_linear, *case(SIZES[2], generator), device, [0])


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, dtype=torch.int64), "x must be float32"),
        (1, torch.zeros(5, 6), "weight must have shape (5, 7), got (5, 6)"),
        (1, torch.zeros(5, 7, requires_grad=True), "weight must be frozen, but it requires a gradient"),
        (2, torch.zeros(5, dtype=torch.float64), "bias is torch.float64, but x is torch.float32"),
    ],
)
def test_bad_input_names_the_argument(index, value, message, generator):
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        frozen_linear(*inputs)
