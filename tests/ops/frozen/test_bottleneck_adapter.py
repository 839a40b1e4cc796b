import re

import pytest
import torch

from pointpeft.ops import bottleneck_adapter, bottleneck_adapter_reference
from pointpeft.ops.frozen import _adapter_triton
from tests.conftest import cut
from tests.ops.frozen.fused import TOLERANCE, assert_all_close
from tests.ops.frozen.test_dynamic_adapter import SHAPES, doubled


def case(shape, generator, dtype=torch.float32, device="cpu"):
    """x and the weights, and a gradient for the result."""
    batch, tokens, c, r = shape

    def draw(*size, fan=1):
        return (torch.randn(size, generator=generator, dtype=torch.float64) / fan**0.5).to(device, dtype)

    weights = [draw(r, c, fan=c), draw(r), draw(c, r, fan=r), draw(c)]
    return [draw(batch, tokens, c), *weights], draw(batch, tokens, c)


def results(function, inputs, grad, **options):
    inputs = [t.detach().requires_grad_() for t in inputs]
    a = function(*inputs, **options)
    return [a, *torch.autograd.grad(a, inputs, grad)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_results_and_gradients_equal_the_reference(shape, dtype, activation, device, generator):
    inputs, grad = case(shape, generator, dtype, device)
    options = {"multiplier": 0.7, "activation": activation}
    expected = results(bottleneck_adapter_reference, doubled(inputs), grad.double(), **options)
    rough = results(bottleneck_adapter_reference, inputs, grad, **options) if dtype.itemsize == 2 else None
    assert_all_close(results(bottleneck_adapter, inputs, grad, **options), expected, dtype, rough)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("relu", [False, True])
def test_kernels_equal_the_reference(shape, dtype, relu, triton_device, generator):
    inputs, grad = case(shape, generator, dtype, triton_device)
    seed = torch.tensor(99, device=triton_device)
    options = {"multiplier": 0.7, "activation": "relu" if relu else "gelu", "dropout_p": 0.2, "training": True}
    expected = results(bottleneck_adapter_reference, doubled(inputs), grad.double(), **options, seed=seed)
    rough = results(bottleneck_adapter_reference, inputs, grad, **options, seed=seed) if dtype.itemsize == 2 else None
    x, *weights = inputs
    given = (x, None, None, None, None, *weights, seed, 0.0, 0.7, 0.2, relu)
    a, _ = _adapter_triton.launch(*given, False)
    grad_x, *back = _adapter_triton.launch_backward(grad, None, *given)
    assert_all_close([a, grad_x, *back[4:]], expected, dtype, rough)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_of_a_token_stays_in_it(relu, triton_device, generator):
    (x, *weights), grad = case(SHAPES[0], generator, device=triton_device)
    x[1, 2, 5] = float("nan")
    expected = results(bottleneck_adapter_reference, [x, *weights], grad, activation="relu" if relu else "gelu")
    given = (x, None, None, None, None, *weights, None, 0.0, 1.0, 0.0, relu)
    a, _ = _adapter_triton.launch(*given, False)
    grad_x, *back = _adapter_triton.launch_backward(grad, None, *given)
    for ours, theirs in zip([a, grad_x, *back[4:]], expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert a[1, 2].isnan().all()
    assert int(a.isnan().sum()) == a.shape[2]


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case((2, 3, 5, 4), generator, torch.float64)
    options = {"multiplier": 0.1, "dropout_p": 0.3, "training": True, "seed": torch.tensor(7)}
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *t: bottleneck_adapter(*t, **options), inputs)


def test_strides_and_offsets_do_not_matter(device, generator):
    inputs, grad = case(SHAPES[1], generator, device=device)
    expected = results(bottleneck_adapter, inputs, grad)
    assert_all_close(results(bottleneck_adapter, [*map(cut, inputs)], cut(grad)), expected, torch.float32)


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    inputs, grad = case(SHAPES[0], generator, device=device)
    compiled = torch.compile(bottleneck_adapter, fullgraph=True, backend="aot_eager")
    expected = results(bottleneck_adapter, inputs, grad, multiplier=0.1)
    assert_all_close(results(compiled, inputs, grad, multiplier=0.1), expected, torch.float32)


@pytest.mark.parametrize(
    ("index", "value", "options", "message"),
    [
        (0, torch.zeros(2, 20), {}, "x must have 3 dimensions, got shape (2, 20)"),
        (1, torch.zeros(3, 19), {}, "down_weight must have shape (3, 20), got (3, 19)"),
        (4, torch.zeros(20, dtype=torch.float64), {}, "up_bias is torch.float64, but x is torch.float32"),
        (0, torch.zeros(2, 5, 20), {"activation": "silu"}, "activation must be gelu or relu, got 'silu'"),
        (0, torch.zeros(2, 5, 20), {"dropout_p": -0.1}, "dropout_p must be at least 0 and below 1, got -0.1"),
    ],
)
def test_bad_input_names_the_argument(index, value, options, message, generator):
    inputs, _ = case(SHAPES[0], generator)
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        bottleneck_adapter(*inputs, **options)
