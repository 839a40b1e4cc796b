import re

import pytest
import torch

from pointpeft.ops import AdapterWeights, adapter, adapter_reference
from pointpeft.ops.core import dropout
from pointpeft.ops.frozen import _adapter, _adapter_composed, _adapter_triton
from tests.conftest import cut
from tests.ops.frozen.fused import TOLERANCE, assert_all_close

# batch, tokens, channels, rank
SHAPES = [(2, 5, 20, 3), (3, 37, 70, 16), (1, 1, 8, 1), (2, 65, 384, 64)]


def flat(x, *weights, **options):
    """The operation on one list of tensors."""
    return adapter(x, AdapterWeights(*weights), **options)


def flat_reference(x, *weights, **options):
    return adapter_reference(x, AdapterWeights(*weights), **options)


def case(shape, generator, dtype=torch.float32, device="cpu"):
    """x and the weights, and gradients for both results."""
    batch, tokens, c, r = shape

    def draw(*size, fan=1):
        return (torch.randn(size, generator=generator, dtype=torch.float64) / fan**0.5).to(device, dtype)

    weights = [1 + 0.1 * draw(c), 0.1 * draw(c), draw(1, c, fan=c), draw(1)]
    weights += [draw(r, c, fan=c), draw(r), draw(c, r, fan=r), draw(c)]
    return [draw(batch, tokens, c), *weights], [draw(batch, tokens, c), draw(batch, c)]


def results(function, inputs, grads, with_prompt, **options):
    """Outputs, then the gradients of all inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs, with_prompt=with_prompt, **options)
    outputs = outputs if with_prompt else (outputs,)
    return [*outputs, *torch.autograd.grad(outputs, inputs, grads[: len(outputs)])]


def kernels(inputs, grads, with_prompt, seed=None, dropout_p=0.0):
    """What the Triton kernels give for the same."""
    outputs = _adapter_triton.launch(*inputs, seed, 1e-5, dropout_p, with_prompt)
    grad_prompt = grads[1] if with_prompt else None
    back = _adapter_triton.launch_backward(grads[0], grad_prompt, *inputs, seed, 1e-5, dropout_p)
    return [*outputs[: 1 + with_prompt], *back]


def assert_close(actual, expected, dtype, rough=None):
    """As `fused.assert_all_close`, with the gradient of the scale's bias as one more channel of its weight's: a single
    number may be small because large ones cancel."""

    def joined(tensors):
        *first, weight, bias = tensors[:-4]
        return [*first, torch.cat([weight, bias[None]], 1), *tensors[-4:]]

    assert_all_close(joined(actual), joined(expected), dtype, None if rough is None else joined(rough))


def doubled(tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_prompt", [False, True])
def test_results_and_gradients_equal_the_reference(shape, dtype, with_prompt, device, generator):
    inputs, grads = case(shape, generator, dtype, device)
    expected = results(flat_reference, doubled(inputs), doubled(grads), with_prompt)
    rough = results(flat_reference, inputs, grads, with_prompt) if dtype.itemsize == 2 else None
    assert_close(results(flat, inputs, grads, with_prompt), expected, dtype, rough)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_prompt", [False, True])
def test_kernels_equal_the_reference(shape, dtype, with_prompt, triton_device, generator):
    inputs, grads = case(shape, generator, dtype, triton_device)
    expected = results(flat_reference, doubled(inputs), doubled(grads), with_prompt)
    rough = results(flat_reference, inputs, grads, with_prompt) if dtype.itemsize == 2 else None
    assert_close(kernels(inputs, grads, with_prompt), expected, dtype, rough)


def assert_edge_gives_no_gradient(function, inputs, grads):
    """As PyTorch has it: the derivative of ReLU at 0 is 0."""
    inputs[3:5] = torch.zeros_like(inputs[3]), torch.zeros_like(inputs[4])
    back = function(grads[0], None, *inputs, None, 1e-5, 0.0)
    expected = results(flat_reference, inputs, grads, False)[1:]
    for ours, theirs in zip(back, expected, strict=True):
        assert not theirs.any()
        assert not ours.any()


def test_a_scale_at_the_edge_of_its_relu_gives_no_gradient(generator):
    assert_edge_gives_no_gradient(_adapter._cpu_backward, *case(SHAPES[0], generator))


@pytest.mark.parametrize("function", [_adapter_triton.launch_backward, _adapter_composed.backward])
def test_a_scale_at_the_edge_of_its_relu_gives_no_gradient_on_cuda(function, triton_device, generator):
    assert_edge_gives_no_gradient(function, *case(SHAPES[0], generator, device=triton_device))


@pytest.mark.parametrize("function", [kernels, None])
def test_nan_of_a_token_stays_in_it(function, triton_device, generator):
    inputs, grads = case(SHAPES[0], generator, device=triton_device)
    inputs[0][1, 2, 5] = float("nan")
    expected = results(flat_reference, inputs, grads, False)
    actual = function(inputs, grads, False) if function else results(composed, inputs, grads, False)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert int(actual[0].isnan().sum()) == actual[0].shape[2]


def composed(*inputs, with_prompt, dropout_p=0.0, seed=None, training=False):
    """The adapter as CUDA composes it, through the registered operation."""
    with torch.library._scoped_library("pointpeft", "IMPL") as library:
        library.impl("adapter", _adapter_composed.forward, "CPU", allow_override=True)
        out = _Composed.apply(seed, dropout_p, with_prompt, *inputs)
    return out if with_prompt else out[0]


class _Composed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, seed, dropout_p, with_prompt, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.options = (seed, 1e-5, dropout_p)
        ctx.with_prompt = with_prompt
        return torch.ops.pointpeft.adapter(*inputs, *ctx.options, with_prompt)

    @staticmethod
    def backward(ctx, grad, grad_prompt):
        with torch.library._scoped_library("pointpeft", "IMPL") as library:
            library.impl("adapter_backward", _adapter_composed.backward, "CPU", allow_override=True)
            grads = torch.ops.pointpeft.adapter_backward(
                grad, grad_prompt if ctx.with_prompt else None, *ctx.saved_tensors, *ctx.options
            )
        return None, None, None, *grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_prompt", [False, True])
def test_what_is_composed_on_cuda_equals_the_reference(shape, dtype, with_prompt, generator):
    inputs, grads = case(shape, generator, dtype)
    options = {"dropout_p": 0.4, "training": True, "seed": torch.tensor(-(2**61) + 12345)}
    expected = results(flat_reference, doubled(inputs), doubled(grads), with_prompt, **options)
    rough = results(flat_reference, inputs, grads, with_prompt, **options) if dtype.itemsize == 2 else None
    assert_close(results(composed, inputs, grads, with_prompt, **options), expected, dtype, rough)


def test_kernels_at_the_published_size(triton_device, generator):
    inputs, grads = case(SHAPES[3], generator, device=triton_device)
    expected = results(flat_reference, inputs, grads, True)
    assert_close(kernels(inputs, grads, True), expected, torch.float32)


def test_dropout_in_forward_and_backward_is_the_reference_s(device, generator):
    inputs, grads = case(SHAPES[1], generator, device=device)
    options = {"dropout_p": 0.4, "training": True, "seed": torch.tensor(-(2**61) + 12345, device=device)}
    expected = results(flat_reference, inputs, grads, True, **options)
    assert_close(results(flat, inputs, grads, True, **options), expected, torch.float32)


def test_dropout_of_the_kernels_is_the_reference_s(triton_device, generator):
    inputs, grads = case(SHAPES[1], generator, device=triton_device)
    seed = torch.tensor(-(2**61) + 12345, device=triton_device)
    options = {"dropout_p": 0.4, "training": True, "seed": seed}
    expected = results(flat_reference, inputs, grads, True, **options)
    assert_close(kernels(inputs, grads, True, seed, 0.4), expected, torch.float32)


def test_gradients_are_those_of_finite_differences(generator):
    inputs, _ = case((2, 3, 5, 4), generator, torch.float64)
    inputs = [t.requires_grad_() for t in inputs]
    options = {"dropout_p": 0.3, "training": True, "seed": torch.tensor(7), "with_prompt": True}
    assert torch.autograd.gradcheck(lambda *t: flat(*t, **options), inputs)


def test_only_the_prompt_may_be_used(generator):
    inputs, grads = case(SHAPES[0], generator)
    leaves = [[t.detach().requires_grad_() for t in inputs] for _ in range(2)]
    a, b = (
        torch.autograd.grad(f(*t, with_prompt=True)[1], t, grads[1])
        for f, t in zip((flat, flat_reference), leaves, strict=True)
    )
    assert_all_close(a, b, torch.float32)


def test_dropping_takes_the_asked_share_and_differs_by_seed():
    first, second = (dropout.mask(torch.tensor(seed), 100_000, 0.3) for seed in (1, 2))
    for mask in (first, second):
        assert abs(float(mask.float().mean()) - 0.7) < 0.01  # seven standard deviations
    assert abs(float((first ^ second).float().mean()) - 2 * 0.3 * 0.7) < 0.01
    assert torch.equal(first, dropout.mask(torch.tensor(1), 100_000, 0.3))


def test_a_fresh_seed_follows_the_default_generator(device, generator):
    inputs, _ = case(SHAPES[1], generator, device=device)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(flat(*inputs, dropout_p=0.5, training=True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("function", [flat, flat_reference])
def test_evaluation_drops_nothing(function, device, generator):
    inputs, _ = case(SHAPES[1], generator, device=device)
    seed = torch.tensor(1, device=device)
    assert torch.equal(function(*inputs, dropout_p=0.5, seed=seed), function(*inputs))
    assert not torch.equal(function(*inputs, dropout_p=0.5, seed=seed, training=True), function(*inputs))


def test_a_closed_gate_lets_no_gradient_through(device, generator):
    inputs, grads = case(SHAPES[0], generator, device=device)
    inputs[4].fill_(-1e3)
    a, *back = results(flat, inputs, grads, False)
    assert not a.any()
    assert not any(g.any() for g in back)


def test_keeps_only_x_and_the_weights_for_the_backward(device, generator):
    inputs, _ = case(SHAPES[1], generator, device=device)
    inputs = [t.requires_grad_() for t in inputs]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        flat(*inputs, dropout_p=0.5, training=True, with_prompt=True)
    known = {t.data_ptr() for t in inputs}
    assert [t.shape for t in kept if t.data_ptr() not in known] == [()]  # the seed


def test_strides_and_offsets_do_not_matter(device, generator):
    inputs, grads = case(SHAPES[1], generator, device=device)
    expected = results(flat, inputs, grads, True)
    assert_close(results(flat, [*map(cut, inputs)], [*map(cut, grads)], True), expected, torch.float32)


def test_opcheck(device, generator):
    inputs, grads = case(SHAPES[0], generator, device=device)
    seed = torch.tensor(5, device=device)
    ops = torch.ops.pointpeft
    for tensors in (inputs, [cut(t) for t in inputs]):
        torch.library.opcheck(ops.adapter, (*tensors, seed, 1e-5, 0.5, True))
        torch.library.opcheck(ops.adapter_backward, (*grads, *tensors, seed, 1e-5, 0.5))


def test_compiles_with_its_backward_without_graph_breaks(device, generator):
    inputs, grads = case(SHAPES[0], generator, device=device)
    compiled = torch.compile(flat, fullgraph=True, backend="aot_eager")
    expected = results(flat, inputs, grads, True)
    assert_close(results(compiled, inputs, grads, True), expected, torch.float32)


def test_autocast_gives_its_type_and_float32_gradients(device, generator):
    inputs, _ = case(SHAPES[1], generator, device=device)
    expected = flat_reference(*inputs)
    inputs = [t.requires_grad_() for t in inputs]
    with torch.autocast(device.type, torch.bfloat16):
        a = flat(*inputs)
    assert_all_close([a], [expected], torch.bfloat16)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(a.float().sum(), inputs))


def test_reference_backend_can_be_forced(monkeypatch, generator):
    inputs, _ = case(SHAPES[0], generator)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(flat(*inputs), flat_reference(*inputs))


@pytest.mark.parametrize(
    ("index", "value", "options", "message"),
    [
        (0, torch.zeros(2, 20), {}, "x must have 3 dimensions, got shape (2, 20)"),
        (0, torch.zeros(2, 5, 20, dtype=torch.int64), {}, "x must be float32"),
        (1, torch.zeros(19), {}, "norm_weight must have shape (20,), got (19,)"),
        (3, torch.zeros(20), {}, "gate_weight must have shape (1, 20), got (20,)"),
        (7, torch.zeros(20, 4), {}, "up_weight must have shape (20, 3), got (20, 4)"),
        (8, torch.zeros(20, dtype=torch.float64), {}, "up_bias is torch.float64, but x is torch.float32"),
        (0, torch.zeros(2, 5, 20), {"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1, got 1.0"),
        (0, torch.zeros(2, 5, 20), {"seed": 3}, "seed must be an int64 tensor of shape () on cpu, got int"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(index, value, options, message, backend, monkeypatch, generator):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    inputs, _ = case(SHAPES[0], generator)
    inputs[index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        flat(*inputs, **options)


@pytest.mark.parametrize("weights", [None, (torch.zeros(20),) * 7, {"norm_weight": torch.zeros(20)}])
def test_weights_of_another_kind_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must be AdapterWeights\(norm_weight, .*, up_bias\), got"):
        adapter(torch.zeros(2, 5, 20), weights)


def test_an_empty_batch_gives_an_empty_result(device, generator):
    inputs, _ = case(SHAPES[0], generator, device=device)
    assert flat(inputs[0][:0], *inputs[1:]).shape == (0, 5, 20)
