"""Compiles the Triton kernels that an operation launches, for GPUs that need not be there.

python -m tests.ops.compile_kernels NAME [--all]: calls NAME's launcher on CPU tensors, with compiling in the place of
launching; bfloat16 and the first configuration of each kernel, or with --all every type and configuration (minutes).
A process of its own, because Triton once imported as an interpreter cannot compile.
"""

import os
import sys
from collections.abc import Iterator

import torch

from pointpeft.ops.core import triton_launch

ARCHS = (80, 90, 100)
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a program may use


def patch_embed(dtype: torch.dtype) -> Iterator[None]:
    import pointpeft.ops.frozen.patch_embed  # noqa: F401  the name in the package is the function

    h1, h2, h3, c = 128, 256, 512, 384
    shapes = [(2, 8, 32, 3), (h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    yield sys.modules["pointpeft.ops.frozen.patch_embed"]._launch(*(torch.zeros(s, dtype=dtype) for s in shapes))


def adapters(dtype: torch.dtype) -> Iterator[None]:
    from pointpeft.ops.frozen import _adapter_triton

    c, r = 384, 64
    sizes = [(2, 129, c), (c,), (c,), (1, c), (1,), (r, c), (r,), (c, r), (c,)]
    x, *weights = (torch.zeros(s, dtype=dtype) for s in sizes)
    seed, prompt = torch.tensor(1), torch.zeros(2, c, dtype=dtype)
    for given, gradient in (((x, *weights, seed), prompt), ((x, *[None] * 4, *weights[4:], None), None)):
        yield _adapter_triton.launch(*given, 1e-5, 1.0, 0.1, False, gradient is not None)
        yield _adapter_triton.launch_backward(x, gradient, *given, 1e-5, 1.0, 0.1, False)


def scale_shift(dtype: torch.dtype) -> Iterator[None]:
    import pointpeft.ops  # noqa: F401

    x, gamma = torch.zeros(100, 384, dtype=dtype), torch.zeros(384, dtype=dtype)
    for name, saved in (("scale_shift", (x, gamma)), ("scale_shift_gelu", (x, gamma, gamma))):
        module = sys.modules[f"pointpeft.ops.frozen.{name}"]
        yield module._launch(x, gamma, gamma)
        yield module._launch_backward(x, *saved)


CASES = {case.__name__: case for case in [patch_embed, adapters, scale_shift]}


def _argument(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + DTYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _compile(kernel: triton_launch.Kernel, grid: object, *args: object, **constants: object) -> None:
    """Takes the place of `Kernel.launch`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.jitted.arg_names
    pointers = {(i,): [["tt.divisibility", 16]] for i, value in enumerate(args) if isinstance(value, torch.Tensor)}
    for values, warps, stages in kernel.configs if "--all" in sys.argv else kernel.configs[:1]:
        constexprs = constants | values
        signature = dict(zip(names, map(_argument, args), strict=False)) | dict.fromkeys(constexprs, "constexpr")
        assert set(signature) == set(names)
        source = ASTSource(kernel.jitted, signature, {(names.index(k),): v for k, v in constexprs.items()}, pointers)
        for arch in ARCHS:
            options = {"num_warps": warps, "num_stages": stages}
            built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            assert len(built.asm["cubin"]) > 0
            shared = built.metadata.shared
            assert shared <= SHARED_LIMIT[arch]
            types = ",".join(sorted({t for t in signature.values() if t.startswith("*")}))
            print(f"{kernel.function.__name__} {values} {types} sm_{arch}: {shared} bytes shared", flush=True)


def main(name: str) -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1"
    triton_launch.Kernel.launch = _compile  # type: ignore[method-assign]
    for dtype in (torch.bfloat16, torch.float32, torch.float16) if "--all" in sys.argv else (torch.bfloat16,):
        for _ in CASES[name](dtype):
            pass


if __name__ == "__main__":
    main(sys.argv[1])
