"""Loads the compiled operations, and says which backend answers where."""

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from pointpeft import _sources
from pointpeft.ops.core import derivatives, triton_launch
from pointpeft.ops.core.archs import has_code_for

_BAD_ARGUMENT = "pointpeft: "  # prefix of the compiled kernels' argument errors, as in csrc/common/pointpeft.h


class LibraryStatus(NamedTuple):
    """One compiled library: whether it is live, and if not, why and what to do."""

    live: bool
    reason: str
    remedy: str


def _load(name: str) -> LibraryStatus:
    path = _sources.PACKAGE / f"{name}.so"
    if not path.is_file():
        return LibraryStatus(False, f"{path} was not built", _sources.build_command())
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return LibraryStatus(
            False, f"{path.name} could not be loaded: {error}", "install again for the torch that is installed"
        )
    if _sources.is_checkout() and _built_from(path) != _sources.fingerprint():
        reason, remedy = (
            f"{path} was compiled from other sources than those of {_sources.CSRC}",
            _sources.build_command(),
        )
        warnings.warn(f"{reason}; {remedy}", RuntimeWarning, stacklevel=2)
        return LibraryStatus(True, reason, remedy)
    return LibraryStatus(True, "loaded", "")


def _built_from(library: Path) -> str:
    """The fingerprint of the sources of a library; empty for one that was built before libraries had it."""
    try:
        return (ctypes.c_char * 65).in_dll(ctypes.CDLL(str(library)), "pointpeft_sources").value.decode()
    except ValueError:
        return ""


def _load_all() -> dict[str, LibraryStatus]:
    cpu = _load("_cpu")
    if torch.version.cuda is None:
        # Some symbols that the CUDA library needs are only in torch builds with CUDA, so it is not even tried.
        cuda = LibraryStatus(False, f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch")
    elif not cpu.live:
        cuda = LibraryStatus(False, "the CPU library, which declares the operations, is not there", cpu.remedy)
    else:
        cuda = _load("_cuda")
    return {"cpu": cpu, "cuda": cuda}


LIBRARIES = _load_all()
"""The compiled libraries by device type."""


def compiled() -> bool:
    """Whether the operations are registered with torch.library."""
    return LIBRARIES["cpu"].live


def made_by_intel() -> bool:
    """Whether the processor is one of Intel's; False where nothing is compiled."""
    try:
        from pointpeft import _C
    except ImportError:
        return False
    return _C.made_by_intel


_override: str | None = None


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Within it, `name` overrides POINTPEFT_BACKEND, so that an exported program need not hold our operations."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def _chosen_backend() -> str:
    if _override is not None:
        return _override
    name = os.environ.get("POINTPEFT_BACKEND", "auto")
    if name not in ("auto", "reference"):
        raise ValueError(f"POINTPEFT_BACKEND must be auto or reference, got {name!r}")
    return name


def reference_is_asked() -> bool:
    """Whether the reference computes everywhere."""
    return _chosen_backend() == "reference"


def backend(device: torch.device | str = "cpu") -> str:
    """Which backend computes on a device.

    Args:
        device: A device or its type.

    Returns:
        "compiled" (C++ or CUDA kernels) or "reference" (plain PyTorch).
    """
    return "compiled" if _is_compiled_on(torch.device(device), _chosen_backend()) else "reference"


def _is_compiled_on(device: torch.device, wish: str) -> bool:
    # Fake and meta tensors trace through the registered operation.
    status = LIBRARIES.get("cpu" if device.type == "meta" else device.type)
    live = wish == "auto" and status is not None and status.live
    return live and (device.type != "cuda" or _has_code_for_gpu(device.index))


def status_of(device: torch.device | str) -> LibraryStatus:
    """The compiled library that serves a device, or why there is none: code for one GPU need not run on another.

    Args:
        device: A device or its type.
    """
    device = torch.device(device)
    status = LIBRARIES.get(device.type)
    if status is None:
        return LibraryStatus(False, f"there are no kernels for {device.type}", "move the tensors to the CPU or CUDA")
    if not status.live or device.type != "cuda" or _has_code_for_gpu(device.index):
        return status
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return LibraryStatus(
        False,
        f"_cuda.so has code for {_cuda_archs()}, none of which runs on {torch.cuda.get_device_name(device)} of "
        f"compute capability {capability}",
        f"install again with TORCH_CUDA_ARCH_LIST={capability}",
    )


def _cuda_archs() -> str:
    from pointpeft import _C  # absent in a tree without a build

    return _C.cuda_archs


_gpus_with_code: dict[int, bool] = {}


def _has_code_for_gpu(index: int | None) -> bool:
    """Whether the CUDA library has code that runs on a GPU, None for the current one; determined once per GPU."""
    if index is None:
        if not torch.cuda.is_available():  # tensors without values may be on "cuda" all the same
            return True
        index = torch.cuda.current_device()
    if index not in _gpus_with_code:
        _gpus_with_code[index] = not torch.cuda.is_available() or has_code_for(
            _cuda_archs(), torch.cuda.get_device_capability(index)
        )
    return _gpus_with_code[index]


# As torch.compiler.assume_constant_result, without its import of torch._dynamo, which takes a second.
setattr(_has_code_for_gpu, "_dynamo_marked_constant", True)  # noqa: B010


@cache
def _say_once(device: str, reason: str, remedy: str) -> None:
    warnings.warn(f"pointpeft runs plain PyTorch on {device}: {reason}; {remedy}", RuntimeWarning, stacklevel=4)


@cache
def warn_composed(case: str, limit: str) -> None:
    """Warns once that an operation on CUDA is composed of PyTorch's, being too large for the Triton kernels."""
    warnings.warn(f"{case} runs in plain PyTorch on CUDA: the Triton kernels {limit}", RuntimeWarning, stacklevel=4)


def use_reference(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` takes the reference; reports once why, where the user did not choose it."""
    # A call on small clouds takes some 0.1 ms, and each look at the environment 0.001: one look.
    device, wish = tensor.device, _chosen_backend()
    if _is_compiled_on(device, wish):
        return False
    if wish == "auto":
        status = status_of(device)
        _say_once(device.type, status.reason, status.remedy)
    return True


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether the reference takes the place of a fused operation because of how it is differentiated; says so once.

    The fused operations have a reverse mode of the first order alone; the reference has every derivative.
    """
    if torch.compiler.is_compiling() or not derivatives.is_transformed():
        return False
    reason = "its fused operations have no forward-mode derivatives and no transforms of torch.func"
    _say_once(tensor.device.type, reason, "differentiate with torch.autograd's reverse mode to run them")
    return True


def use_fused_reference(tensor: torch.Tensor) -> bool:
    """As `use_reference`, for operations that are written in Triton for CUDA: in float64 they take the reference there.

    Triton's products of matrices and PyTorch's fused attention have no float64, and the kernels sum in float32.
    """
    device = tensor.device.type
    if _chosen_backend() == "reference" or (device == "cuda" and tensor.dtype == torch.float64):
        return True
    if is_transformed(tensor):
        return True
    if device == "cpu":
        return use_reference(tensor)
    if device == "meta" or (device == "cuda" and triton_launch.available()):
        return False
    reason = "Triton is not installed" if device == "cuda" else f"there are no kernels for {device}"
    remedy = "install triton" if device == "cuda" else "move the tensors to the CPU or CUDA"
    _say_once(device, reason, remedy)
    return True


FUSED = torch.library.Library("pointpeft", "FRAGMENT")
"""The library in which operations written in Python are declared."""


def define(
    schema: str, *, cpu: Callable[..., Any], cuda: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Declares `pointpeft::NAME` from Python.

    Args:
        schema: Name, arguments and results, as PyTorch writes them.
        cpu: Answers for CPU tensors.
        cuda: Answers for CUDA tensors.
        fake: Answers for tensors without values.

    Returns:
        The operation.
    """
    name = schema.partition("(")[0]
    FUSED.define(schema, tags=torch.Tag.pt2_compliant_tag)
    FUSED.impl(name, cpu, "CPU")
    FUSED.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"pointpeft::{name}", fake, lib=FUSED)
    return derivatives.operation(getattr(torch.ops.pointpeft, name).default)


def autocast_kind(tensor: torch.Tensor) -> str:
    """The device type whose autocast holds for `tensor`: torch has none for tensors without values."""
    return "cpu" if tensor.device.type == "meta" else tensor.device.type


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type in which operations on `tensor` compute: autocast's where it is enabled, else the tensor's own."""
    device = autocast_kind(tensor)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under autocast the tensors in its type, else as they are; follows the device of the first."""
    device = autocast_kind(tensors[0])
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(_cast(t, dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


_casts: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of frozen parameters, in bfloat16


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`. On the CPU the cast of a frozen parameter to bfloat16 is kept, as long as it is the cast.

    Else each call writes all frozen weights again, into fresh memory. Whether a cached cast is valid is checked for all
    values in each call: addresses and versions tell nothing of what is written through `.data` or by another library,
    and a sample of the values misses a change of some of them.
    """
    if (
        tensor.dtype != torch.float32
        or dtype != torch.bfloat16
        or type(tensor) is not torch.nn.Parameter
        or tensor.requires_grad
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
        or not compiled()
        or torch.compiler.is_compiling()
    ):
        return tensor.to(dtype)
    cached = _casts.get(tensor)
    if cached is not None and cached.numel() == tensor.numel() and torch.ops.pointpeft._is_cast.default(tensor, cached):
        return cached.view(tensor.shape)
    with torch.inference_mode(False), torch.no_grad():  # the next call may be one of training
        cast = tensor.detach().to(dtype)
    if type(cast) is torch.Tensor:  # of tensors without values nothing is kept
        _casts[tensor] = cast
    return cast


def promoted(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in the smallest type that holds the values of all."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
    return tuple(t.to(dtype) for t in tensors)


def call(op: Callable[..., Any], *args: Any) -> Any:
    """Calls a registered operation; a kernel's complaint about an argument becomes a ValueError."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return derivatives.call(op, *args)
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if text.startswith(_BAD_ARGUMENT):
            raise ValueError(text.splitlines()[0].removeprefix(_BAD_ARGUMENT)) from None
        raise


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `torch.library.register_fake("pointpeft::NAME")`, where the operation is compiled."""
    return torch.library.register_fake(f"pointpeft::{name}") if compiled() else lambda function: function


def register_autograd(
    name: str,
    formula: derivatives.Formula,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> None:
    """Registers the derivatives of `pointpeft::NAME`, where it is compiled; arguments as in `derivatives.register`."""
    if compiled():
        derivatives.register(FUSED, name, formula, backward, setup_context)


def returns_indices(name: str) -> None:
    """Declares that all results of `pointpeft::NAME` are indices, which have no derivative."""
    if compiled():
        FUSED.impl(name, torch.library.fallthrough_kernel, "Autograd")
