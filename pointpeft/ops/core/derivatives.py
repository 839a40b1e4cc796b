"""Derivatives of the registered operations: one Autograd kernel for each, which is right or raises.

torch.library's own Autograd kernel knows reverse mode alone: forward mode gives no tangent and no message, the
transforms of torch.func raise, and an operation without a kernel merely warns in its backward. Here every operation
has a kernel with three ways to go:

- No input is differentiated: the kernel below Autograd, nothing else.
- Reverse mode: the operation's own backward, where it has one. Fast, and the way of all training.
- Everything else (forward mode, torch.func, derivatives of a backward): the operation's formula, which is the same
  function in plain PyTorch with the indices that the kernel found taken as data. PyTorch differentiates it further.

An operation without a formula raises an error that names it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Formula = Callable[..., Any]
"""(inputs, output) -> the output again, differentiable; outputs that are indices are handed on."""

NAMESPACE = "pointpeft::"
REMEDY = "POINTPEFT_BACKEND=reference takes the plain PyTorch operations, which can be differentiated any way"


def is_transformed() -> bool:
    """Whether forward-mode differentiation or a transform of torch.func is under way."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def register(
    library: torch.library.Library,
    name: str,
    formula: Formula | None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> None:
    """Registers the Autograd kernel of `pointpeft::NAME`.

    Args:
        library: Keeps the registration alive.
        name: Of the operation, without its namespace.
        formula: The operation in plain PyTorch; None for one that cannot be differentiated so.
        backward: (ctx, *gradients) -> a gradient or None per input, as torch.library.register_autograd takes it.
        setup_context: (ctx, inputs, output): what `backward` needs.
    """
    op = getattr(torch.ops.pointpeft, name).default
    if any(argument.kwarg_only or argument.has_default_value() for argument in op._schema.arguments):
        raise ValueError(f"{name} must take all its arguments by position and without defaults, got {op._schema}")
    function = None if backward is None else _function(op, backward, setup_context)
    formula = functools.partial(_refuse, name) if formula is None else formula

    def kernel(keyset: Any, *args: Any) -> Any:
        reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if reverse and function is not None and not is_transformed():
            return function.apply(*args, keyset)
        with torch._C._AutoDispatchBelowAutograd():
            output = op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        return formula(args, output) if reverse or has_tangent(args) else output

    library.impl(name, kernel, "Autograd", with_keyset=True)


def _function(op: Any, backward: Callable[..., Any], setup_context: Any) -> type[torch.autograd.Function]:
    """The operation with its own backward, for reverse mode alone."""

    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            *inputs, keyset = args
            with torch._C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            inputs = backward(ctx, *grads)
            return (*inputs, None) if isinstance(inputs, tuple) else (inputs, None)

    return Reverse


def _refuse(name: str, inputs: tuple[Any, ...], output: Any) -> Any:
    if any(tensor.is_floating_point() for tensor in tensors(output)):
        raise RuntimeError(
            f"pointpeft::{name} has no derivative of this kind (it was called with an input that requires a gradient "
            f"or carries a tangent); {REMEDY}"
        )
    return output  # indices have no derivative to get wrong


def call(op: Any, *args: Any) -> Any:
    """`op(*args)`, past its Autograd kernel, which is Python, where nothing is differentiated."""
    if torch.compiler.is_compiling() or is_transformed():
        return op(*args)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def operation(op: Any) -> Callable[..., Any]:
    """A function that calls `op` by `call`."""
    return functools.partial(call, op)


def recording() -> Any:
    """Within it a kernel can differentiate by autograd, which is switched off below the Autograd kernel."""
    tls = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    return torch._C._ForceDispatchKeyGuard(tls[0], tls[1] - autograd)


def refuse_gradient(name: str, *args: Any) -> None:
    """Raises where a transform of torch.func wants a gradient of an operation that cuts it: it would get zeros."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        raise RuntimeError(f"pointpeft's {name} has no gradient; call it under torch.no_grad() to treat it as data")


def refuse_the_rest(library: torch.library.Library) -> None:
    """Gives each registered operation that has no Autograd kernel one that raises where a derivative is needed."""
    for name in names():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(NAMESPACE + name, "Autograd"):
            register(library, name, None)


def names() -> list[str]:
    """All registered operations, without their namespace."""
    registered = (name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names())
    return sorted(name.removeprefix(NAMESPACE) for name in registered if name.startswith(NAMESPACE))


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from tensors(branch)


def has_tangent(tree: Any) -> bool:
    """Whether one of the tensors carries a tangent of forward mode."""
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return any(t.is_floating_point() and forward_ad.unpack_dual(t).tangent is not None for t in tensors(tree))


class _Once(torch.autograd.Function):
    """Hands on the gradients of a first backward, and raises in a second one."""

    @staticmethod
    def forward(ctx, name, count, *tensors):
        ctx.name = name
        return tuple(None if t is None else t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"{ctx.name} can be differentiated once, not twice; {REMEDY}")


def once_differentiable(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a backward that has no derivative: a second one raises an error that names the operation.

    torch's own decorator connects its error neither to what was saved nor to the gradients that come in, so that
    `torch.autograd.grad` passes it by and gives zeros, and a gradient penalty loses a part of its gradient.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx, *grads):
            with torch.no_grad():
                outputs = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return outputs
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return _Once.apply(name, len(outputs), *outputs, *grads, *ctx.saved_tensors)

        return once

    return decorate
