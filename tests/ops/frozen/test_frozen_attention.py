import re

import pytest
import torch

from pointpeft.ops import frozen_attention, frozen_attention_reference
from pointpeft.ops.core import rows as _rows
from tests.conftest import CPU_LEVELS
from tests.ops.frozen import fused

# batch, tokens, C, heads, width of a head
SIZES = [(1, 1, 3, 1, 8), (2, 5, 12, 3, 16), (3, 67, 40, 2, 32), (1, 17, 7, 3, 5)]
TRAINED = [0, 3, 4]


def case(size, generator):
    """x, W, b, γ and β, and a gradient for the result."""
    batch, tokens, c, heads, width = size
    rows = 3 * heads * width

    def draw(*shape, fan=1):
        return fused.draw(generator, *shape, fan=fan)

    inputs = [draw(batch, tokens, c), draw(rows, c, fan=c), draw(rows), 1 + 0.3 * draw(rows), draw(rows)]
    return inputs, draw(batch, tokens, heads * width)


def pair(size):
    """The operation and its reference, of a list of tensors."""
    functions = (frozen_attention, frozen_attention_reference)
    return (lambda x, w, b, *terms, f=f: f(x, w, b, size[3], *terms) for f in functions)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_and_gradients_equal_the_reference(size, dtype, device, generator):
    fused.assert_equals_reference(*pair(size), *case(size, generator), dtype, device, TRAINED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
@pytest.mark.parametrize("left_out", [(), (2,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("cpu_level", CPU_LEVELS, indirect=True)
def test_result_where_no_gradient_is_asked_for_equals_the_reference(size, dtype, left_out, cpu_level, generator):
    inputs = [None if i in left_out else t.to(dtype) for i, t in enumerate(case(size, generator)[0])]
    op, reference = pair(size)
    expected = reference(*(None if t is None else t.double() for t in inputs))
    rough = (reference(*inputs).double() - expected).abs().max() if dtype.itemsize == 2 else 0.0
    allowed = fused.TOLERANCE[dtype] * max(1.0, float(expected.abs().max())) + 2 * rough
    assert (op(*inputs).double() - expected).abs().max() <= allowed


def test_gradients_are_those_of_finite_differences(generator):
    inputs = [t.requires_grad_(i in TRAINED) for i, t in enumerate(case(SIZES[1], generator)[0])]
    assert torch.autograd.gradcheck(next(pair(SIZES[1])), inputs)


@pytest.mark.parametrize("clouds", [0, 1, 2])
def test_how_many_clouds_are_in_one_place_does_not_matter(clouds, generator, monkeypatch):
    inputs = case(SIZES[2], generator)[0]
    op, _ = pair(SIZES[2])
    whole = op(*inputs)
    monkeypatch.setattr(_rows, "per_chunk", lambda width, dtype: 67 * clouds + 1)
    assert (op(*inputs) - whole).abs().max() <= 1e-12 * whole.abs().max()


def test_strides_and_offsets_do_not_matter(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_strides_do_not_matter(op, *case(SIZES[2], generator), device, TRAINED)


def test_opcheck(device, generator):
    inputs = [t.to(device, torch.float32) for t in case(SIZES[1], generator)[0]]
    torch.library.opcheck(torch.ops.pointpeft.frozen_attention, (*inputs, 3))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    op, _ = pair(SIZES[2])
    fused.assert_compiles(op, *case(SIZES[2], generator), device, TRAINED)


def test_autocast_gives_its_type(device, generator):
    op, reference = pair(SIZES[2])
    inputs = [t.to(device, torch.float32) for t in case(SIZES[2], generator)[0]]
    expected = reference(*inputs)
    with torch.autocast(device.type, torch.bfloat16):
        got = op(*inputs)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() <= fused.TOLERANCE[torch.bfloat16] * float(expected.abs().max())


def test_over_nothing_is_empty(device):
    for batch, tokens in ((0, 5), (2, 0)):
        y = frozen_attention(torch.ones(batch, tokens, 4, device=device), torch.ones(6, 4, device=device), None, 1)
        assert y.shape == (batch, tokens, 2)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(5, 12), "x must have 3 dimensions, got shape (5, 12)"),
        (1, torch.zeros(144, 11), "weight must have shape (144, 12), got (144, 11)"),
        (1, torch.zeros(143, 12), "weight must have a multiple of 3 * num_heads = 9 rows, got (143, 12)"),
        (1, None, "weight must be a tensor, got NoneType"),
        (1, torch.zeros(144, 12, requires_grad=True), "weight must be frozen, but it requires a gradient"),
        (2, torch.zeros(144, requires_grad=True), "bias must be frozen, but it requires a gradient"),
        (3, None, "scale and shift must be given together, got shift alone"),
        (4, torch.zeros(144, dtype=torch.float64), "shift is torch.float64, but x is torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs = [t.float() for t in case(SIZES[1], generator)[0]]
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        frozen_attention(*inputs[:3], 3, *inputs[3:])
