"""Whether a module computes what its class says, so that a fused operation may take its weights and stand in for it.

Whoever changes a module does it in one of a few ways: another class in its place (a subclass, a parametrisation, a
quantised layer, a LoRA around it), a `forward` of the instance, a hook, or weights that are tensors of another class.
A call of the module sees all of them; an operation that reads `module.weight` sees none.
"""

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

Plain = TypeVar("Plain", bound=nn.Module)
_HOOKS = torch.nn.modules.module  # holds the hooks of all modules
# Classes of tensors whose products are what their values say. The last two stand in for others while tracing.
_ORDINARY = frozenset({Tensor, nn.Parameter, FakeTensor, FunctionalTensor})


def _is_affine(norm: Any) -> bool:
    weights = norm._parameters
    return weights.get("weight") is not None and weights.get("bias") is not None


def _is_pointwise(conv: Any) -> bool:
    ones = (1,) * len(conv.kernel_size)
    padded = conv.padding not in (0, "valid", (0,) * len(ones))
    return _has_weight(conv) and conv.kernel_size == conv.stride == ones and conv.groups == 1 and not padded


def _has_weight(layer: Any) -> bool:
    return layer._parameters.get("weight") is not None


# Further requirements of the operations, which support a linear map, a norm over channels and a 1x1 convolution.
_NEEDS: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.Linear: _has_weight,
    nn.Conv1d: _is_pointwise,
    nn.Conv2d: _is_pointwise,
    nn.LayerNorm: lambda norm: _is_affine(norm) and len(norm.normalized_shape) == 1,
    nn.BatchNorm1d: lambda norm: _is_affine(norm) and norm.running_mean is not None,
}


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks, which a fused operation would skip."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _HOOKS._global_forward_hooks
        or _HOOKS._global_forward_pre_hooks
        or _HOOKS._global_backward_hooks
        or _HOOKS._global_backward_pre_hooks
    )


def is_plain(module: nn.Module, cls: type[Plain]) -> TypeGuard[Plain]:
    """Whether `module` is exactly a `cls`: no subclass, no hooks, no `forward` of its own, ordinary weights.

    Args:
        module: A layer or a container; of a container its parts are not looked at.
        cls: What a fused operation is written for. A LayerNorm must have weight and bias and normalise the channels
            alone, a convolution have kernels of 1, a BatchNorm have weight, bias and running statistics.
    """
    if type(module) is not cls or has_hooks(module) or "forward" in module.__dict__ or module._compiled_call_impl:
        return False
    for tensor in module._parameters.values():
        if tensor is not None and type(tensor) not in _ORDINARY:
            return False
    needs = _NEEDS.get(cls)
    return needs is None or needs(module)


def is_frozen(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `layer` is a plain linear map that gets no gradient."""
    return is_plain(layer, nn.Linear) and not is_trained(layer)


def is_trained(layer: nn.Module) -> bool:
    """Whether a backward pass would give a parameter of `layer` itself a gradient; its parts are not looked at."""
    if torch.is_grad_enabled():
        for parameter in layer._parameters.values():
            if parameter is not None and parameter.requires_grad:
                return True
    return False
