import re

import pytest
import torch

from pointpeft.ops import AdapterWeights, MlpWeights, NormWeights, frozen_mlp, frozen_mlp_reference
from tests.ops.frozen import fused

# batch, tokens, C, H, R
SIZES = [(1, 1, 8, 1, 1), (3, 7, 5, 9, 2), (2, 40, 33, 70, 16), (2, 300, 24, 96, 8)]
FROZEN = {5, 6, 7, 8}  # of the flat inputs: the maps of the MLP


def case(size, generator):
    """x, norm, MLP and adapter in one list, and gradients for both results."""
    batch, tokens, c, h, r = size

    def draw(*shape, fan=1):
        return fused.draw(generator, *shape, fan=fan)

    norm = [1 + 0.1 * draw(c), 0.1 * draw(c), 1 + 0.1 * draw(c), 0.1 * draw(c)]
    mlp = [draw(h, c, fan=c), draw(h), draw(c, h, fan=h), draw(c)]
    mlp += [1 + 0.3 * draw(h), draw(h), 1 + 0.3 * draw(c), draw(c)]
    adapter = [1 + 0.1 * draw(c), 0.1 * draw(c), draw(1, c, fan=c), 1 + draw(1).abs()]
    adapter += [draw(r, c, fan=c), draw(r), draw(c, r, fan=r), draw(c)]
    return [draw(batch, tokens, c), *norm, *mlp, *adapter], [draw(batch, tokens, c), draw(batch, c)]


def flat(function, **options):
    """The operation on one list of tensors."""

    def call(x, *weights):
        norm, mlp, adapter = NormWeights(*weights[:4]), MlpWeights(*weights[4:12]), AdapterWeights(*weights[12:])
        return function(x, mlp, norm=norm, adapter=adapter, **options)

    return call


def results(function, inputs, grads, **options):
    """Outputs, then the gradients of all inputs that train."""
    inputs = [t.detach().requires_grad_(i not in FROZEN) for i, t in enumerate(inputs)]
    outputs = flat(function, **options)(*inputs)
    trained = [t for t in inputs if t.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, trained, grads)]


def to(tensors, dtype, device):
    return [t.to(device, dtype) for t in tensors]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", fused.TOLERANCE)
def test_results_and_gradients_equal_the_reference(size, dtype, device, generator):
    inputs, grads = (to(tensors, dtype, device) for tensors in case(size, generator))
    expected = results(frozen_mlp_reference, to(inputs, torch.float64, device), to(grads, torch.float64, device))
    rough = results(frozen_mlp_reference, inputs, grads) if dtype.itemsize == 2 else None
    fused.assert_all_close(results(frozen_mlp, inputs, grads), expected, dtype, rough)


def test_short_gradients_are_summed_in_single_precision_on_one_thread(one_thread):
    """One thread sums over all 600 rows, which loses several per cent where the sum is kept in bfloat16."""
    inputs, grads = (to(t, torch.bfloat16, "cpu") for t in case(SIZES[-1], torch.Generator().manual_seed(3)))
    expected = results(frozen_mlp_reference, to(inputs, torch.float64, "cpu"), to(grads, torch.float64, "cpu"))
    for actual, exact in zip(results(frozen_mlp, inputs, grads)[3:7], expected[3:7], strict=True):
        assert (actual.double() - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize("dtype", fused.TOLERANCE)
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_with_a_branch_both_residuals_belong_to_it(dtype, wanted, mixed, device, generator):
    if mixed and dtype.itemsize > 2:
        pytest.skip("autocast has short types alone")
    inputs, _ = case(SIZES[2], generator)
    branch = fused.draw(generator, *inputs[0].shape).to(device, dtype)
    stream = torch.float32 if mixed else dtype  # autocast leaves the residual stream in float32
    inputs = to(inputs, stream, device)
    expected = flat(frozen_mlp_reference, branch=branch.double())(*to(inputs, torch.float64, device))
    with torch.autocast(device.type, dtype, enabled=mixed):
        rough = flat(frozen_mlp_reference, branch=branch)(*inputs) if dtype.itemsize == 2 else None
        inputs[0].requires_grad_(wanted)
        y, prompt = flat(frozen_mlp, branch=branch)(*inputs)
    assert y.requires_grad == wanted
    assert y.dtype == stream
    fused.assert_all_close([y.to(dtype)], expected[:1], dtype, rough and rough[:1])
    fused.assert_all_close([prompt], expected[1:], dtype, rough and rough[1:])


def test_gradients_of_a_branch_are_those_of_finite_differences(generator):
    inputs = case(SIZES[1], generator)[0]
    branch = fused.draw(generator, *inputs[0].shape).requires_grad_()
    x = inputs[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: flat(frozen_mlp, branch=b)(x, *inputs[1:]), [x, branch])


@pytest.mark.parametrize("function", [frozen_mlp, frozen_mlp_reference])
def test_folded_scales_and_shifts_are_left_out(function, generator):
    inputs, _ = case(SIZES[1], generator)
    places = {3: 1, 9: 1, 11: 1, 4: 0, 10: 0, 12: 0}  # γ and β of the norm and of both maps
    plain = [torch.full_like(t, places[i]) if i in places else t for i, t in enumerate(inputs)]
    folded = [None if i in places else t for i, t in enumerate(inputs)]
    torch.testing.assert_close(flat(function)(*folded), flat(function)(*plain))


def test_one_of_a_scale_and_its_shift_alone_is_refused(generator):
    inputs = case(SIZES[1], generator)[0]
    inputs[9] = None
    with pytest.raises(ValueError, match="scale1 and shift1 must be given together, got shift1 alone"):
        flat(frozen_mlp)(*inputs)


def test_opcheck(device, generator):
    x, *rest = to(case(SIZES[1], generator)[0], torch.float32, device)
    weight, bias, weights = rest[0], rest[1], rest[4:]
    for branch, keep in ((None, True), (torch.randn_like(x), False)):
        args = (x, branch, weight, bias, weights, None, 1e-5, 1e-5, 0.0, keep)
        torch.library.opcheck(torch.ops.pointpeft.adapted_mlp, args)


def test_without_gradients_it_is_the_same(device, generator):
    inputs = to(case(SIZES[2], generator)[0], torch.float32, device)
    expected = flat(frozen_mlp_reference)(*inputs)
    fused.assert_all_close(flat(frozen_mlp)(*inputs), expected, torch.float32)


def test_gradients_are_those_of_finite_differences(generator):
    inputs = [t.requires_grad_(i not in FROZEN) for i, t in enumerate(case(SIZES[1], generator)[0])]
    options = {"dropout_p": 0.3, "training": True, "seed": torch.tensor(7)}
    assert torch.autograd.gradcheck(flat(frozen_mlp, **options), inputs)


def test_dropout_is_the_reference_s(device, generator):
    inputs, grads = (to(tensors, torch.float32, device) for tensors in case(SIZES[2], generator))
    options = {"dropout_p": 0.4, "training": True, "seed": torch.tensor(-(2**61) + 12345, device=device)}
    expected = results(frozen_mlp_reference, inputs, grads, **options)
    fused.assert_all_close(results(frozen_mlp, inputs, grads, **options), expected, torch.float32)
    assert not torch.equal(results(frozen_mlp, inputs, grads)[0], expected[0])


def test_both_epsilons_have_their_place(generator):
    inputs, grads = case(SIZES[1], generator)
    options = {"norm_eps": 0.3, "eps": 0.7}
    expected = results(frozen_mlp_reference, inputs, grads, **options)
    fused.assert_all_close(results(frozen_mlp, inputs, grads, **options), expected, torch.float64)
    swapped = results(frozen_mlp, inputs, grads, norm_eps=0.7, eps=0.3)
    assert not torch.allclose(swapped[0], expected[0])


def test_only_one_of_its_results_may_be_used(generator):
    inputs, grads = case(SIZES[1], generator)
    for i in range(2):
        gradients = []
        for function in (frozen_mlp, frozen_mlp_reference):
            x = inputs[0].detach().requires_grad_()
            output = flat(function)(x, *inputs[1:])[i]
            gradients.append(torch.autograd.grad(output, x, grads[i])[0])
        torch.testing.assert_close(*gradients)


def test_it_keeps_the_second_map_s_output_alone(generator):
    inputs = to(case(SIZES[3], generator)[0], torch.float32, "cpu")
    batch, tokens, c = inputs[0].shape
    frozen = lambda *t: flat(frozen_mlp)(*(x.detach() if i in FROZEN else x for i, x in enumerate(t)))  # noqa: E731
    products = 2 * c + c  # γ ⊙ weight, its bias, and γ which that product keeps
    assert fused.kept_bytes(frozen, inputs) <= 4 * (batch * tokens * c + products)


def test_autocast_computes_the_branches_in_its_type(device, generator):
    inputs, grads = (to(tensors, torch.float32, device) for tensors in case(SIZES[2], generator))
    expected = results(frozen_mlp_reference, inputs, grads)
    with torch.autocast(device.type, torch.bfloat16):
        got = results(frozen_mlp, inputs, [g.bfloat16() for g in grads])
        rough = results(frozen_mlp_reference, inputs, [g.bfloat16() for g in grads])
    assert [t.dtype for t in got[:2]] == [torch.bfloat16] * 2
    assert all(t.dtype == torch.float32 for t in got[2:])
    for a, e, r in zip(got, expected, rough, strict=True):
        a, e, r = (t.detach().double() for t in (a, e, r))
        assert (a - e).abs().max() <= 4e-2 * e.abs().max() + 2 * (r - e).abs().max()


def test_strides_and_offsets_do_not_matter(device, generator):
    from tests.conftest import cut

    inputs, grads = (to(tensors, torch.float32, device) for tensors in case(SIZES[2], generator))
    expected = results(frozen_mlp, inputs, grads)
    cuts = [cut(t) for t in inputs], [cut(t) for t in grads]
    fused.assert_all_close(results(frozen_mlp, *cuts), expected, torch.float32)


def test_compiles_without_gradients(device, generator):
    inputs = to(case(SIZES[2], generator)[0], torch.float32, device)
    compiled = torch.compile(frozen_mlp, fullgraph=True, backend="aot_eager")
    fused.assert_all_close(flat(compiled)(*inputs), flat(frozen_mlp_reference)(*inputs), torch.float32)


def test_no_clouds_give_empty_results(device, generator):
    inputs = to(case(SIZES[1], generator)[0], torch.float32, device)
    y, prompt = flat(frozen_mlp)(inputs[0][:0], *inputs[1:])
    assert (y.shape, prompt.shape) == ((0, 7, 5), (0, 5))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    inputs, grads = (to(tensors, torch.float32, device) for tensors in case(SIZES[2], generator))
    expected = results(frozen_mlp, inputs, grads)
    compiled = torch.compile(frozen_mlp, fullgraph=True, backend="aot_eager")
    fused.assert_all_close(results(compiled, inputs, grads), expected, torch.float32)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3, 7, 5, dtype=torch.int64), "x must be float32"),
        (0, torch.zeros(7, 5), "x must have 3 dimensions"),
        (3, torch.zeros(4), "norm.scale must have shape (5,), got (4,)"),
        (4, torch.zeros(5, dtype=torch.float64), "norm.shift is torch.float64, but x is torch.float32"),
        (5, torch.zeros(9, 5, requires_grad=True), "w1 must be frozen, but it requires a gradient"),
        (6, torch.zeros(9, requires_grad=True), "b1 must be frozen, but it requires a gradient"),
        (7, torch.zeros(5, 9, requires_grad=True), "w2 must be frozen, but it requires a gradient"),
        (8, torch.zeros(5, requires_grad=True), "b2 must be frozen, but it requires a gradient"),
        (11, torch.zeros(9), "scale2 must have shape (5,), got (9,)"),
        (17, torch.zeros(2, 4), "adapter.down_weight must have shape (2, 5), got (2, 4)"),
        (20, torch.zeros(5, dtype=torch.float64), "adapter.up_bias is torch.float64, but x is torch.float32"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs = to(case(SIZES[1], generator)[0], torch.float32, "cpu")
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        flat(frozen_mlp)(*inputs)


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (torch.zeros(3, 7, 4), "branch must have shape (3, 7, 5), got (3, 7, 4)"),
        (3, "branch must be a tensor, got int"),
    ],
)
def test_a_branch_of_another_kind_is_refused(branch, message, generator):
    with pytest.raises(ValueError, match=re.escape(message)):
        flat(frozen_mlp, branch=branch)(*to(case(SIZES[1], generator)[0], torch.float32, "cpu"))


@pytest.mark.parametrize("name", ["norm", "adapter"])
@pytest.mark.parametrize("value", [None, 3, (torch.zeros(5),) * 4])
def test_weights_of_another_kind_are_refused(name, value, generator):
    x, *rest = case(SIZES[1], generator)[0]
    given = {"norm": NormWeights(*rest[:4]), "adapter": AdapterWeights(*rest[12:])} | {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be {name.capitalize()}Weights\(.*\), got (NoneType|int|tuple)"):
        frozen_mlp(x, MlpWeights(*rest[4:12]), **given)


def test_a_branch_without_an_adapter_is_refused(generator):
    x, *rest = case(SIZES[1], generator)[0]
    with pytest.raises(ValueError, match="branch must be None without an adapter, got Tensor"):
        frozen_mlp(x, MlpWeights(*rest[4:12]), branch=x)
