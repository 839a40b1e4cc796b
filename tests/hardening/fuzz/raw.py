"""Fuzzes the registered operations without their public functions: `python -m tests.hardening.fuzz.raw --cases 2000`.

A case makes right arguments of an operation of `torch.ops.pointpeft`, from a public call that is recorded on its way
through forward and backward, or by itself. Right arguments must be answered. With a spoilt one, of another shape,
dtype, device or value, the operation may answer or refuse, and must end in neither a crash nor an internal error; a
length, start or index out of range must be refused. Now and then a public function is compiled, must give what it
gives uncompiled, and must refuse the same values.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pointpeft import ops
from tests.hardening.fuzz.case import CASES, tensors_of
from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import main
from tests.hardening.fuzz.ops import TOLERANCE, Failure, alike, describe, differentiate, equal, flat, spoilt
from tests.hardening.fuzz.raw_cases import RAW

REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, NotImplementedError)
INTERNAL = ("INTERNAL ASSERT", "Segmentation", "please report a bug")
ON_CUDA_ALONE = {"gather_backward_sorted"}
COMPILED = 0.01  # of the cases, which take a hundred times as long


class Recorder(TorchDispatchMode):
    """Keeps the calls of our operations that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.namespace == "pointpeft":
            self.calls.append((func, list(args)))
        return func(*args, **(kwargs or {}))


def names() -> list[str]:
    """The registered operations."""
    every = torch._C._dispatch_get_all_op_names()
    return sorted({name.split("::")[1].split(".")[0] for name in every if name.startswith("pointpeft::")})


def recorded(draw: Draw, name: str) -> list[tuple[Any, list[Any]]]:
    """What a right call of a public function, and its backward, asks of the registered operations."""
    case = CASES[name](draw)
    arguments = {
        at: value.detach().requires_grad_() if isinstance(value, Tensor) and at in case.learns else value
        for at, value in case.arguments.items()
    }
    with Recorder() as recorder:
        try:
            results = flat(getattr(ops, name)(**arguments))
        except ValueError:  # a case may hold NaN, or nothing to choose from
            return []
        grads = [torch.randn(r.shape, generator=draw.torch, dtype=torch.float64) for r in results]
        differentiate(results, [t for _, t in tensors_of(arguments) if t.requires_grad], grads)
    return recorder.calls


# Arguments whose values index memory, and the operations that take them.
BOUNDED = {"lengths", "starts", "idx", "idx_a", "idx_b", "start"}


def out_of_range(draw: Draw, value: Any) -> Any:
    """The same with one value far outside of any range, or None where there is none."""
    if isinstance(value, Tensor) and value.numel():
        value = value.contiguous().clone()
        value.view(-1)[draw.randrange(value.numel())] = draw.choice(
            [-1, 10**4, 2**31 - 1] if value.dtype == torch.int32 else [-1, -(2**40), 10**4, 2**62]
        )
        return value
    if isinstance(value, int):
        return draw.choice([-1, 10**6, 2**62, -(2**63)])
    return None


def call(op: Any, arguments: list[Any]) -> str:
    """Calls an operation and reads what it gives; gives how it ended."""
    try:
        with torch.no_grad():
            results = op(*arguments)
    except REFUSALS as error:
        if any(word in str(error) for word in INTERNAL):
            raise
        return "refused"
    except AttributeError as error:  # None instead of a tensor reaches operations that are written in Python
        if not str(error).startswith("'NoneType' object"):
            raise
        return "refused"
    for result in results if isinstance(results, (tuple, list)) else [results]:
        if isinstance(result, Tensor) and result.device.type == "cpu" and result.dtype != torch.bool:
            result.double().sum()
    return "answered"


def one_raw(draw: Draw, op: Any, arguments: list[Any]) -> str:
    kind = draw.randrange(4)
    schema = [argument.name for argument in op._schema.arguments]
    if kind == 0:
        if (ended := call(op, arguments)) != "answered" and not holds_nonfinite(arguments):
            raise AssertionError("right arguments are refused")
        return ended
    if kind == 1:
        places = [i for i, at in enumerate(schema[: len(arguments)]) if at in BOUNDED]
        which = draw.choice(places) if places else None
        wrong = out_of_range(draw, arguments[which]) if which is not None else None
        ignored = which is not None and schema[which] == "start" and arguments[schema.index("starts")] is not None
        if wrong is not None and not ignored:
            arguments[which] = wrong
            if call(op, arguments) != "refused":
                raise AssertionError(f"{schema[which]} out of range is not refused")
            return "refused"
    for _ in range(draw.choice([1, 1, 2])):
        which = draw.randrange(len(arguments))
        if getattr(arguments[which], "is_meta", False):  # spoilt already, and without values
            continue
        arguments[which] = spoilt(draw, arguments[which])
    return call(op, arguments)


def holds_nonfinite(arguments: list[Any]) -> bool:
    return any(isinstance(t, Tensor) and t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in arguments)


def near(mine: Tensor, eager: Tensor, tensors: Iterable[tuple[str, Tensor]]) -> bool:
    """Whether results are equal, or finite ones alike in the shortest dtype: a compiled sum may have another order."""
    if mine.dtype != eager.dtype or mine.shape != eager.shape:
        return False
    if equal(mine, eager) or not bool(torch.isfinite(eager).all()):
        return True
    dtypes = [eager.dtype, *(t.dtype for _, t in tensors)]
    shortest = max((d for d in dtypes if d in TOLERANCE), key=TOLERANCE.__getitem__, default=None)
    return shortest is not None and eager.is_floating_point() and alike(mine, eager, shortest, 1.0)


def one_compiled(draw: Draw, name: str) -> str:
    """A public function, compiled: the same results, and the same values refused."""
    arguments = CASES[name](draw).arguments
    tensors = {at: value for at, value in arguments.items() if isinstance(value, Tensor)}
    others = {at: value for at, value in arguments.items() if at not in tensors}
    function: Callable[..., Any] = lambda given: getattr(ops, name)(**given, **others)  # noqa: E731
    try:
        expected = flat(function(tensors))
    except ValueError:
        return "not compiled"
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for mine, eager in zip(flat(compiled(tensors)), expected, strict=True):
        random = arguments.get("training") and arguments.get("seed") is None
        if not random and not near(mine, eager, tensors_of(arguments)):
            raise AssertionError("compiled, the result is another")
    for at in sorted(tensors.keys() & {"lengths", "start", "idx"}):
        wrong = out_of_range(draw, tensors[at])
        if wrong is None:
            continue
        try:
            compiled(tensors | {at: wrong.to(tensors[at].dtype)})
        except ValueError:
            continue
        raise AssertionError(f"compiled, {at} out of range is not refused")
    return "compiled"


def one(seed: int, number: int) -> tuple[str, str]:
    """Runs a case; gives the operation and how it ended."""
    draw = Draw("raw", seed, number)
    if draw.happens(COMPILED):
        name = draw.choice(sorted(CASES))
        try:
            return name, one_compiled(draw, name)
        except Exception as error:
            raise Failure(name, f"compiled {name}\n{type(error).__name__}: {error}") from error
    if draw.happens(0.4):
        name = draw.choice(sorted(RAW))
        op, arguments = getattr(torch.ops.pointpeft, name).default, RAW[name](draw)
    else:
        name = draw.choice(sorted(CASES))
        calls = recorded(draw, name)
        if not calls:
            return name, "nothing to call"
        op, arguments = draw.choice(calls)
    name = op._schema.name.split("::")[1]
    told = dict(zip((argument.name for argument in op._schema.arguments), arguments, strict=False))
    try:
        return name, one_raw(draw, op, arguments)
    except Exception as error:
        raise Failure(name, f"{describe(told)}\n{describe(dict(enumerate(arguments)))}\n{error}") from error


if __name__ == "__main__":
    main("tests.hardening.fuzz.raw", (__doc__ or "").splitlines()[0], one, 6 << 30, 60.0)
