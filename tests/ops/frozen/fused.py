"""What every differentiable fused operation is held to, given its inputs by `case(generator, dtype)`."""

import torch

from tests.conftest import cut

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}  # rounding


def draw(generator, *size, fan=1):
    """Normal values of variance 1 / fan."""
    return torch.randn(size, generator=generator, dtype=torch.float64) / fan**0.5


def results(function, inputs, grad, trained=None):
    """The output, then the gradients of the inputs in `trained` (default: all)."""
    trained = range(len(inputs)) if trained is None else trained
    inputs = [t.detach().requires_grad_(i in trained) for i, t in enumerate(inputs)]
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, [inputs[i] for i in trained], grad)]


def assert_all_close(actual, expected, dtype, rough=None):
    """Each within the rounding of the type, relative to its largest value, or twice as far off as `rough`.

    `rough` is the reference computed in a short type, whose intermediate roundings count too.
    """
    for a, e, r in zip(actual, expected, rough or actual, strict=True):
        assert a.shape == e.shape
        assert a.dtype == dtype
        a, e, r = (t.detach().double() for t in (a, e, r))
        allowed = TOLERANCE[dtype] * e.abs().max() + (2 * (r - e).abs().max() if rough else 0)
        assert (a - e).abs().max() <= allowed


def assert_equals_reference(op, reference, inputs, grad, dtype, device, trained=None):
    """Result and gradients against the reference in double precision."""
    inputs, grad = [t.to(device, dtype) for t in inputs], grad.to(device, dtype)
    expected = results(reference, [t.double() for t in inputs], grad.double(), trained)
    rough = results(reference, inputs, grad, trained) if dtype.itemsize == 2 else None
    assert_all_close(results(op, inputs, grad, trained), expected, dtype, rough)


def assert_strides_do_not_matter(op, inputs, grad, device, trained=None):
    """Inputs cut out of larger tensors give what whole ones give."""
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    expected = results(op, inputs, grad, trained)
    assert_all_close(results(op, [cut(t) for t in inputs], cut(grad), trained), expected, torch.float32)


def assert_compiles(op, inputs, grad, device, trained=None):
    """Forward and backward in one graph each."""
    inputs, grad = [t.to(device, torch.float32) for t in inputs], grad.to(device, torch.float32)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = results(op, inputs, grad, trained)
    assert_all_close(results(compiled, inputs, grad, trained), expected, torch.float32)


def assert_autocasts(op, reference, inputs, device):
    """Under autocast the result is of its type, and the gradients of the inputs' type."""
    inputs = [t.to(device, torch.float32).requires_grad_() for t in inputs]
    with torch.autocast(device.type, torch.bfloat16):
        output = op(*inputs)
    assert_all_close([output], [reference(*inputs)], torch.bfloat16)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(output.float().sum(), inputs))


def kept_bytes(op, inputs):
    """Bytes kept for the backward besides the inputs themselves."""
    inputs = [t.float().requires_grad_() for t in inputs]
    known = {t.data_ptr() for t in inputs}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        op(*inputs)
    return sum(t.nbytes for pointer, t in kept.items() if pointer not in known)
